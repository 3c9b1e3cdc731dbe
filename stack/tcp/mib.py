"""The counters of TCP under the names `nstat` and /proc/net/{snmp,netstat} have for them (RFC 4022, Linux's TcpExt)."""

from __future__ import annotations

from enum import StrEnum

from stack.errors import Drops


class Mib(StrEnum):
    """Each says what it counts; where Linux counts, we do."""

    ATTEMPT_FAILS = "TcpAttemptFails"  # handshakes that ended in CLOSED or back in LISTEN
    SYNCOOKIES_SENT = "TcpExtSyncookiesSent"
    SYNCOOKIES_RECV = "TcpExtSyncookiesRecv"  # ACKs that were good cookies
    SYNCOOKIES_FAILED = "TcpExtSyncookiesFailed"  # ACKs that were none, while cookies were about
    EMBRYONIC_RSTS = "TcpExtEmbryonicRsts"  # half-open connections ended by a reset
    LISTEN_OVERFLOWS = "TcpExtListenOverflows"  # the accept queue was full
    LISTEN_DROPS = "TcpExtListenDrops"  # SYNs and last ACKs dropped, for whatever reason
    REQQ_FULL_DO_COOKIES = "TcpExtTCPReqQFullDoCookies"  # the SYN queue was full: a cookie instead
    REQQ_FULL_DROP = "TcpExtTCPReqQFullDrop"  # ... and cookies are off: dropped
    DEFER_ACCEPT_DROP = "TcpExtTCPDeferAcceptDrop"  # bare ACKs ignored for TCP_DEFER_ACCEPT
    TIMEOUTS = "TcpExtTCPTimeouts"  # SYN|ACKs not acknowledged in time
    SYN_RETRANS = "TcpExtTCPSynRetrans"  # SYN|ACKs sent again
    TIME_WAITED = "TcpExtTW"  # connections that entered TIME-WAIT
    TIME_WAIT_RECYCLED = "TcpExtTWRecycled"  # TIME-WAIT ended early by a connect (tcp_tw_reuse)
    TIME_WAIT_OVERFLOW = "TcpExtTCPTimeWaitOverflow"  # no TIME-WAIT: there were too many
    CHALLENGE_ACK = "TcpExtTCPChallengeACK"  # RFC 5961
    MIN_TTL_DROP = "TcpExtTCPMinTTLDrop"  # segments that came farther than IP_MINTTL allows
    PAWS_ESTAB = "TcpExtPAWSEstab"  # segments with an old timestamp
    TSECR_REJECTED = "TcpExtTSEcrRejected"  # segments that echo a timestamp never sent
    ACK_SKIPPED_SYN_RECV = "TcpExtTCPACKSkippedSynRecv"  # not answered, to break ACK loops
    ACK_SKIPPED_TIME_WAIT = "TcpExtTCPACKSkippedTimeWait"
    OFO_PRUNED = "TcpExtOfoPruned"  # segments beyond a gap thrown away for lack of room
    OUT_OF_WINDOW_ICMPS = "TcpExtOutOfWindowIcmps"
    MD5_NOT_FOUND = "TcpExtTCPMD5NotFound"  # segments that should have been signed
    MD5_UNEXPECTED = "TcpExtTCPMD5Unexpected"  # ... and should not have been
    MD5_FAILURE = "TcpExtTCPMD5Failure"  # ... and were, with another key
    FASTOPEN_ACTIVE = "TcpExtTCPFastOpenActive"  # data in our SYN was acknowledged
    FASTOPEN_ACTIVE_FAIL = "TcpExtTCPFastOpenActiveFail"  # ... was not
    FASTOPEN_PASSIVE = "TcpExtTCPFastOpenPassive"  # connections accepted with data in the SYN
    FASTOPEN_PASSIVE_FAIL = "TcpExtTCPFastOpenPassiveFail"  # cookies that were not ours
    FASTOPEN_PASSIVE_ALT_KEY = "TcpExtTCPFastOpenPassiveAltKey"  # accepted by the backup key
    FASTOPEN_LISTEN_OVERFLOW = "TcpExtTCPFastOpenListenOverflow"  # more than the listener's limit
    FASTOPEN_COOKIE_REQD = "TcpExtTCPFastOpenCookieReqd"  # peers that asked for a cookie
    FASTOPEN_BLACKHOLE = "TcpExtTCPFastOpenBlackhole"  # times we stopped using it for a while


class MibCounters(Drops):
    """Counts by `Mib`; reads as a mapping that knows all names."""

    __slots__ = ()

    def snapshot(self) -> dict[str, int]:
        """All of them, those at 0 too."""
        return {name.value: self[name] for name in Mib}
