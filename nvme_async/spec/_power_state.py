"""Power state descriptors in Identify Controller (Base 2.1, 5.1.13.2.1)."""

from __future__ import annotations

import attrs

from nvme_async.spec._layout import Layout, uint

_POWER_SCALE = (0.0, 0.0001, 0.01, 0.0)  # watts; 0 and 3 mean that nothing is reported
_TIME_SCALE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0, 1e4, 1e5, 1e6)


def _seconds(value: int, scale: int) -> float | None:
    return value * _TIME_SCALE[scale] if value and scale < len(_TIME_SCALE) else None


@attrs.frozen
class PowerState(Layout, size=32):
    """Power state descriptor (Base 2.1, 5.1.13.2.1). Latencies in microseconds."""

    mp: int = uint(0, 2)
    """Maximum power, in 10 mW, or in 0.1 mW with MXPS."""
    flags: int = uint(3, 1)
    """Bit 0 MXPS, bit 1 NOPS (non-operational)."""
    enlat: int = uint(4, 4)
    exlat: int = uint(8, 4)
    rrt: int = uint(12, 1)
    rrl: int = uint(13, 1)
    rwt: int = uint(14, 1)
    rwl: int = uint(15, 1)
    idlp: int = uint(16, 2)
    ips: int = uint(18, 1)
    actp: int = uint(20, 2)
    apws: int = uint(22, 1)
    """Active power workload in bits 2:0, active power scale in bits 7:6."""
    epfrt: int = uint(23, 1)
    """Emergency power fail recovery time."""
    fqvt: int = uint(24, 1)
    """Forced quiescence vault time."""
    epfvt: int = uint(25, 1)
    """Emergency power fail vault time."""
    epfr_fqv_ts: int = uint(26, 1)
    """Scales: of epfrt in bits 3:0, of fqvt in bits 7:4."""
    epfvts: int = uint(27, 1)
    """Scale of epfvt in bits 3:0."""

    @property
    def max_power_watts(self) -> float:
        """Maximum power that the controller takes in this state; 0 if not reported."""
        return self.mp * (0.0001 if self.flags & 1 else 0.01)

    @property
    def operational(self) -> bool:
        """Whether I/O commands are processed in this state."""
        return not self.flags & 2

    @property
    def idle_power_watts(self) -> float | None:
        """Typical power over 30 seconds of idleness; None if not reported."""
        return self.idlp * _POWER_SCALE[self.ips >> 6] or None

    @property
    def active_power_watts(self) -> float | None:
        """Largest average power over 10 seconds under the workload of apws; None if not
        reported.
        """
        return self.actp * _POWER_SCALE[self.apws >> 6] or None

    @property
    def emergency_recovery_seconds(self) -> float | None:
        """Emergency power fail recovery time; None if not reported."""
        return _seconds(self.epfrt, self.epfr_fqv_ts & 0xF)

    @property
    def quiescence_vault_seconds(self) -> float | None:
        """Forced quiescence vault time; None if not reported."""
        return _seconds(self.fqvt, self.epfr_fqv_ts >> 4)

    @property
    def emergency_vault_seconds(self) -> float | None:
        """Emergency power fail vault time; None if not reported."""
        return _seconds(self.epfvt, self.epfvts & 0xF)
