"""steadystate=: whether IOPS or bandwidth have settled, judged over a sliding window of one
value per second.
"""

from __future__ import annotations

from collections import deque

from nvme_async.fio.parsers import SteadyState
from nvme_async.fio.stats import SteadyStateResult


class SteadyStateWatch:
    """Feed it totals; it takes a value each `interval` seconds. `attained` is true when the
    criterion holds over a full window.
    """

    wanted: SteadyState

    def __init__(self, wanted: SteadyState, duration: float, ramp: float, interval: float = 1.0) -> None:
        self.wanted, self._interval = wanted, interval
        seconds = max(2, round(duration))
        self._values = max(2, round(duration / interval))
        self._iops: deque[int] = deque(maxlen=self._values)
        self._bandwidth: deque[int] = deque(maxlen=self._values)
        self._ramp_left = ramp
        self._last: tuple[float, int, int] | None = None
        self.result: SteadyStateResult = SteadyStateResult(str(wanted), seconds, percent=wanted.percent)
        # A job that ends in its ramp reports an empty window, as in fio.
        self.result.iops, self.result.bandwidth = [0] * self._values, [0] * self._values

    def feed(self, now: float, ios: int, nbytes: int) -> bool:
        """Totals at `now` (seconds). True when steady state is attained."""
        last = self._last
        if last is None:
            self._last = (now, ios, nbytes)
            return False
        if now - last[0] < self._interval:
            return self.result.attained
        elapsed = now - last[0]
        self._last = (now, ios, nbytes)
        if self._ramp_left > 0:
            self._ramp_left -= elapsed
            return False
        self._iops.append(round((ios - last[1]) / elapsed))
        self._bandwidth.append(round((nbytes - last[2]) / elapsed))
        return self._judge()

    def _judge(self) -> bool:
        values = list(self._iops if self.wanted.metric == "iops" else self._bandwidth)
        result = self.result
        result.iops, result.bandwidth = list(self._iops), list(self._bandwidth)
        if len(values) < self._values:
            return False
        mean = sum(values) / len(values)
        result.slope = _slope(values)
        result.deviation = max(abs(value - mean) for value in values)
        criterion = abs(result.slope) if self.wanted.slope else result.deviation
        if self.wanted.percent:
            criterion = 100.0 * criterion / mean if mean else 100.0
        result.criterion = criterion
        result.attained = criterion <= self.wanted.limit
        return result.attained


def _slope(values: list[int]) -> float:
    """Of the least-squares line through the values, per second."""
    n = len(values)
    mean_x, mean_y = (n - 1) / 2, sum(values) / n
    spread = sum((x - mean_x) ** 2 for x in range(n))
    return sum((x - mean_x) * (y - mean_y) for x, y in enumerate(values)) / spread
