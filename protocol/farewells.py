"""A farewell in words, for the log of the node that leaves and of those that stay."""

from __future__ import annotations

from protocol.messages import Farewell, Unsafe


def farewell_sentence(report: Farewell) -> str:
    """What was at risk, who has it, and what is not safe: one line."""
    begun = f"{report.artifacts} artifacts ({report.bytes} bytes) were at risk"
    where = ", ".join(f"{saved.node} took {saved.artifacts} ({saved.bytes} bytes)" for saved in report.saved)
    left = f"{report.unsafe} ({report.unsafe_bytes} bytes) are not durable" if report.unsafe else "all are durable"
    lost = f", {report.lost} of them ({report.lost_bytes} bytes) are nowhere else" if report.lost else ""
    return "; ".join(part for part in (begun, where, left + lost) if part)


def unsafe_sentence(unsafe: Unsafe) -> str:
    """One artifact that is not durable."""
    copies = f"{unsafe.copies} {'copy' if unsafe.copies == 1 else 'copies'}"
    fate = f"has {copies} elsewhere and is not durable" if unsafe.copies else "is on this disk alone"
    return f"{unsafe.key.name} ({unsafe.size} bytes, {unsafe.digest.hex()[:12]}) {fate}: {unsafe.why}"
