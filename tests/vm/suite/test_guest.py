"""The guest has what the other tests assume: an IOMMU, VFIO, and a controller for every role."""

from __future__ import annotations

from pathlib import Path


def test_the_iommu_is_on_and_every_controller_has_a_group() -> None:
    functions = [
        path for path in Path("/sys/bus/pci/devices").iterdir() if (path / "class").read_text() == "0x010802\n"
    ]
    assert len(functions) > 10
    assert all((path / "iommu_group").exists() for path in functions)


def test_vfio_is_loaded() -> None:
    assert Path("/dev/vfio/vfio").is_char_device()
    assert Path("/sys/bus/pci/drivers/vfio-pci").is_dir()
