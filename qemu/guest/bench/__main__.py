"""``python -m qemu.guest.bench``, which is ``make bench``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from qemu.guest import Guest, GuestError
from qemu.guest.bench import cost, paths, report, rig, rows, sockets, vsock

#: There are many vsock rows; each is measured for no longer than this.
VSOCK_SECONDS = 1.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Short rounds: shows that the bench works, not what the figures are.")
@click.option("--seconds", type=float, default=3.0, show_default=True, help="Length of one measurement.")
@click.option("--rounds", type=int, default=3, show_default=True, help="Measurements of each row and path.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bench-out/bench.json"),
    show_default=True,
    help="Where the figures go as JSON.",
)
def main(quick: bool, seconds: float, rounds: int, output: Path) -> None:
    """Measure throughput and latency of a real guest over our card and over QEMU's slirp, alternating."""
    console = Console()
    if quick:
        seconds, rounds = min(seconds, 0.5), 1
    measured: list[rows.Row] = []
    try:
        with console.status("booting the guest") as status, Guest(user_net=True) as guest:
            ways = [rows.our_path(guest), rows.slirp_path(guest)]
            verdict = guest.verdict
            facts = {"accelerator": f"{verdict.accelerator}: {verdict.reason}" if verdict else ""}
            console.print(f"guest booted in {guest.boot_seconds:.1f} s, accelerator {facts['accelerator']}")
            status.update(f"measuring: {len(rows.GUEST_ROWS)} rows, {rounds} rounds of {seconds:g} s on each path")
            for row in rows.measure(guest, ways, seconds=seconds, rounds=rounds):
                measured.append(row)
                status.update(f"measured: {row.name}")
            status.update("measuring vsock with the guest")
            short = min(seconds, VSOCK_SECONDS)
            streams = {"guest": list(vsock.guest_rows(guest, short, rounds))}
        with console.status("measuring on the driver rig"):
            streams["rig"] = list(vsock.rig_rows(short, rounds))
            figures = {
                "TCP driver to socket, 64 KiB superframes": rig.guest_to_stack(seconds).rate,
                "TCP socket to driver, 64 KiB superframes": rig.stack_to_guest(seconds).rate,
                "TCP driver to socket, 1500-byte frames": rig.guest_to_stack(seconds, frame=1460).rate,
                "two copies": rig.two_copies(seconds),
            }
        with console.status("measuring what the stack costs"):
            counts = (0, 100) if quick else (0, 1_000, 10_000)
            sections = {
                "A superframe of TCP from one stack to another, by stage": cost.superframe_stages(short),
                "Packets without any offload": cost.packet_rates(short),
                "Connections that say nothing": cost.idle_connections(counts),
                "Socket calls, beside the kernel's through the same interpreter": list(
                    sockets.figures(3 if quick else 9)
                ),
            }
        with console.status("measuring congestion control over a long path"):
            sections["Bulk TCP over a simulated path"] = paths.figures(2 if quick else 10)
    except (GuestError, rig.RigError) as error:
        console.print(f"[red]bench: {error}[/red]", highlight=False)
        sys.exit(1)
    report.show(console, measured, figures)
    report.show_vsock(console, "vsock on the driver rig, beside a Unix stream socket", streams["rig"], vsock.PAIR)
    report.show_vsock(console, "vsock with the real guest", streams["guest"], "")
    for title, section in sections.items():
        report.show_figures(console, title, section)
    report.save(output, measured, figures, facts, streams, sections)
    console.print(f"figures in {output}")


if __name__ == "__main__":
    main()
