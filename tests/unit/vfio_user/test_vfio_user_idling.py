"""What a client of the emulated controller costs while nothing happens."""

from __future__ import annotations

import contextlib
import os
import select
import time

import pytest
from raw_vfio_user import (
    Admin,
    RawClient,
)

from nvme_async.emulator import EmulatedController
from nvme_async.emulator.device import end_abandoned

pytestmark = pytest.mark.alone  # measures times

OWN = "size=1MiB,reactor=own"


class TestIdling:
    """Wake-ups are counted, because their number doesn't depend on the machine: one costs 17 to
    27 us of processor time, more on a busy machine.
    """

    def wakeups(self, controller, seconds=1.0):
        """How often the reactor's thread woke in a second, after an idle second; it may wake once
        a second for its own timers.
        """
        time.sleep(1.0)
        began = time.monotonic()  # the counts are taken within this time, however late they are
        before = controller.reactor_stats()
        time.sleep(seconds)
        after = controller.reactor_stats()
        took = time.monotonic() - began
        assert after["active"] == 0, "it polls"
        return (after["sleeps"] - before["sleeps"]) / took

    def test_an_idle_client_that_kicks_costs_nothing(self):
        with EmulatedController(OWN) as controller, RawClient(controller.connect()) as client:
            Admin(client, "kick").identify()
            assert self.wakeups(controller) < 10

    def test_an_idle_client_without_kicks_costs_little(self):
        """Sleeps of 2 ms, at most 500 per second: a hundredth of a core."""
        with EmulatedController(OWN) as controller, RawClient(controller.connect()) as client:
            Admin(client, "page").identify()
            assert 1 < self.wakeups(controller) < 520

    def test_many_idle_controllers_cost_nothing(self):
        with contextlib.ExitStack() as stack:
            end_abandoned()  # an earlier test's saved bundle may have been the last to hold one
            controllers = [stack.enter_context(EmulatedController("size=1MiB")) for _ in range(64)]
            for controller in controllers:
                Admin(stack.enter_context(RawClient(controller.connect())), "kick").identify()
            assert controllers[0].reactor_stats()["controllers"] == 64
            assert self.wakeups(controllers[0]) < 10

    def test_the_first_command_after_idling_is_fast(self):
        """The median is within 200 us on an idle machine; the fastest shows that no sleep delays
        it, even on a busy one.
        """
        with EmulatedController(OWN) as controller, RawClient(controller.connect()) as client:
            admin = Admin(client, "kick")
            latencies = []
            for _ in range(40):
                admin.identify()
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(admin.interrupt)
                time.sleep(0.005)
                start = time.perf_counter()
                admin.submit(0x06, prp1=admin.IOVA + 8192, cdw10=1)
                select.select([admin.interrupt], [], [], 5)
                latencies.append(time.perf_counter() - start)
                admin.wait()
            assert min(latencies) < 0.001
