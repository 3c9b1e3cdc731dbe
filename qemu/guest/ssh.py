"""ssh into a guest: a key of its own, let in by the agent; the guest's host keys, learnt from the agent.

So nothing has to be prepared in the image, nothing is asked, and host keys are checked for real. The connection goes
over the guest's card, or over its vsock. There sshd listens by itself with systemd 256 or later, by its
systemd-ssh-generator; with an older one the same socket unit is put into /run, where it is gone with the guest.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from qemu.guest.errors import MissingError, SetupError

if TYPE_CHECKING:
    from qemu.guest.guest_network import GuestNetwork

SSH_PORT: Final = 22
_KEYGEN_SECONDS: Final = 30
_GUEST_SECONDS: Final = 60.0
#: Key exchange and login; sshd starts a shell of the user's.
_CONNECT_SECONDS: Final = {False: 15, True: 90}  # by: under TCG
_USER_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-$")
#: Let the key on standard input in; exit code 3 where there is no such user.
_AUTHORIZE: Final = """\
while IFS=: read -r name _ uid gid _ home _; do
    [ "$name" = "$ACCOUNT" ] || continue
    mkdir -p "$home/.ssh" && read -r key <&3 || exit 1
    grep -qsxF "$key" "$home/.ssh/authorized_keys" || printf '%s\\n' "$key" >> "$home/.ssh/authorized_keys" || exit 1
    chmod 700 "$home/.ssh" && chmod 600 "$home/.ssh/authorized_keys" && chown -R "$uid:$gid" "$home/.ssh"
    exit
done 3<&0 < /etc/passwd
exit 3
"""
_HOST_KEYS: Final = """\
command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || exit 3
if ! cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null; then
    ssh-keygen -A >&2 || exit 1
    if [ -d /run/systemd/system ]; then systemctl restart ssh.service || systemctl restart sshd.service; fi >&2
    cat /etc/ssh/ssh_host_*_key.pub
fi
"""
_SOCKET_UNIT: Final = f"""\
[Unit]
Description=OpenSSH server on vsock (made by Guestwire)
[Socket]
ListenStream=vsock::{SSH_PORT}
Accept=yes
"""
_SERVICE_UNIT: Final = """\
[Unit]
Description=OpenSSH server for one connection on vsock (made by Guestwire)
[Service]
ExecStart=-/usr/sbin/sshd -i
StandardInput=socket
RuntimeDirectory=sshd
RuntimeDirectoryPreserve=yes
RuntimeDirectoryMode=0755
"""
_UNIT: Final = "/run/systemd/system/guestwire-sshd"


def has_client() -> bool:
    """Whether this machine has ssh and ssh-keygen."""
    return shutil.which("ssh") is not None and shutil.which("ssh-keygen") is not None


class SshAccess:
    """One guest's, until `close`. The methods raise what `GuestSystem.ssh_command` says."""

    def __init__(self, guest: GuestNetwork, slow: bool) -> None:
        """`slow`: it runs under TCG."""
        if not has_client():
            raise MissingError("no ssh and ssh-keygen here: apt-get install openssh-client")
        self._guest = guest
        self._slow = slow
        self._places: dict[str, tuple[str, int]] = {}  # of ways: where they begin on this machine
        self._authorized: set[str] = set()
        self._directory = tempfile.TemporaryDirectory(prefix="guestwire-")
        key = Path(self._directory.name) / "key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guestwire", "-f", str(key)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_KEYGEN_SECONDS,
            check=True,
        )
        self._key = key
        self.public_key = key.with_suffix(".pub").read_text().strip()

    def command(self, user: str, via: Literal["net", "vsock"]) -> list[str]:
        if via not in ("net", "vsock"):
            raise SetupError(f"ssh goes via net or vsock, not via {via!r}")
        if not user or not set(user) <= _USER_LETTERS:
            raise SetupError(f"{user!r} is no name of a user")
        if not self._places:
            self._learn_host_keys()
        if user not in self._authorized:
            self._authorize(user)
        if via not in self._places:
            self._places[via] = self._open_net() if via == "net" else self._open_vsock()
        path = Path(self._directory.name) / f"{via}-{user}"
        path.write_text(self._config(user, *self._places[via]))
        return ["ssh", "-F", str(path), "guest"]

    def close(self) -> None:
        """The key is gone then. Idempotent."""
        self._directory.cleanup()

    def _config(self, user: str, host: str, port: int) -> str:
        settings = {
            "HostName": host,
            "Port": port,
            "User": user,
            "IdentityFile": self._key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": Path(self._directory.name) / "known_hosts",
            "GlobalKnownHostsFile": "none",
            "HostKeyAlias": "guest",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "ConnectTimeout": int(_CONNECT_SECONDS[self._slow] * self._guest.config.timeout_scale) or 1,
        }
        return "Host guest\n" + "".join(f"    {name} {value}\n" for name, value in settings.items())

    def _learn_host_keys(self) -> None:
        done = self._guest.run(_HOST_KEYS, timeout=_GUEST_SECONDS)
        keys = [line.split()[:2] for line in done.stdout.splitlines() if len(line.split()) >= 2]
        if done.rc == 3:
            raise SetupError("the guest has no sshd: put openssh-server into its image")
        if not keys:
            raise SetupError(f"the guest's sshd has no host keys, and none could be made: {done.stderr.strip()}")
        lines = "".join(f"guest {' '.join(key)}\n" for key in keys)
        (Path(self._directory.name) / "known_hosts").write_text(lines)

    def _authorize(self, user: str) -> None:
        done = self._guest.run(_AUTHORIZE, input=f"{self.public_key}\n", env={"ACCOUNT": user}, timeout=_GUEST_SECONDS)
        if done.rc == 3:
            raise SetupError(f"the guest has no user {user!r}")
        if not done.succeeded:
            raise SetupError(f"the guest's {user} cannot be given a key: {done.stderr.strip()}")
        self._authorized.add(user)

    def _open_net(self) -> tuple[str, int]:
        return self._guest.forward(SSH_PORT).address

    def _open_vsock(self) -> tuple[str, int]:
        guest = self._guest
        if not self._answers():
            if not guest.run("[ -d /run/systemd/system ]", timeout=_GUEST_SECONDS).succeeded:
                raise SetupError("nobody listens on the guest's vsock port 22, and it has no systemd to do so")
            guest.put(f"{_UNIT}.socket", _SOCKET_UNIT)
            guest.put(f"{_UNIT}@.service", _SERVICE_UNIT)
            unit = shlex.quote(_UNIT.rpartition("/")[2])
            done = guest.run(f"systemctl daemon-reload && systemctl start {unit}.socket", timeout=_GUEST_SECONDS)
            if not done.succeeded or not self._answers():
                raise SetupError(f"the guest's systemd does not listen on vsock port 22: {done.stderr.strip()}")
        host, port = guest.vsock.expose("tcp:127.0.0.1:0", SSH_PORT)[:2]
        return str(host), int(port)

    def _answers(self) -> bool:
        try:
            self._guest.vsock.connect(SSH_PORT).close()
        except OSError:
            return False
        return True
