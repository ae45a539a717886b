"""Names of sockets that leave room for what unix(7) allows."""

from __future__ import annotations

from nvme_async.sharing.places import place_of

URI = "vfio-user:/run/user/1000/controllers/first.sock"


def test_a_name_without_room_is_cut_and_stays_distinct() -> None:
    path = "/" + "d" * 69
    places = [place_of(f"{URI}{number}", path, True) for number in range(3)]
    assert len(set(places)) == 3
    for place in places:
        assert place.startswith(path + "/vfio-user_")
        assert len(place) + len(".4194304") <= 107  # an owner binds to a path with its pid first
    assert place_of(f"{URI}0", path, True) == places[0]


def test_a_name_with_room_is_whole() -> None:
    assert place_of("pci:0000:01:00.0", "/run/x", True) == "/run/x/pci_0000_01_00.0.sock"
