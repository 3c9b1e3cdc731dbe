"""Classic BPF: the programs of SO_ATTACH_FILTER, checked and run as Linux does."""

from stack.bpf.machine import FilterPacket, run
from stack.bpf.program import Program, check

__all__ = ["FilterPacket", "Program", "check", "run"]
