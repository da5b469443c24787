"""Whether a VM fits, and how well."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_agent.capacity import GIB, Free, disk_gib, free, misfit, misfit_snapshot, score, unwritten, with_disk
from aetherscale_agent.ports import HostResources, Image
from aetherscale_protocol.options import CreateVm

MANY = settings(max_examples=100, deadline=None, database=None)

IMAGE = Image("tiny", "/images/tiny.qcow2", "qcow2", GIB, "0" * 64)
ROOMY = Free(cpus=16, memory=32768, disk=500)

specs = st.builds(
    CreateVm, image=st.just("tiny"), cpus=st.integers(1, 8), memory=st.integers(64, 8192), disk=st.integers(1, 100)
)


def spec(**wanted: int | str) -> CreateVm:
    return CreateVm(image="tiny", **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "size", "given_"),
    [(10, GIB, 10), (1, GIB, 1), (1, GIB + 1, 2), (1, 1, 1), (1, 0, 1), (1, 3 * GIB, 3), (5, 3 * GIB, 5)],
)
def test_a_disk_is_at_least_as_large_as_its_image(wanted: int, size: int, given_: int) -> None:
    image = Image("tiny", "/x", "qcow2", size, "")
    assert disk_gib(spec(disk=wanted), image) == given_


def test_without_an_image_a_disk_is_what_was_wanted() -> None:
    assert disk_gib(spec(disk=7), None) == 7


@pytest.mark.parametrize(
    ("wanted", "left", "reason"),
    [
        ({}, ROOMY, None),
        ({"cpus": 16, "memory": 32768, "disk": 500}, ROOMY, None),
        ({"cpus": 17}, ROOMY, "cores: 17 wanted, 16 free"),
        ({"memory": 32769}, ROOMY, "memory: 32769 MiB wanted, 32768 MiB free"),
        ({"disk": 501}, ROOMY, "disk: 501 GiB wanted, 500 GiB free"),
        (
            {"cpus": 2, "disk": 9, "memory": 64},
            Free(1, 64, 8),
            "cores: 2 wanted, 1 free; disk: 9 GiB wanted, 8 GiB free",
        ),
        ({"memory": 64}, Free(4, -512, 100), "memory: 64 MiB wanted, 0 MiB free"),
    ],
)
def test_what_does_not_fit_says_by_how_much(wanted: dict[str, int], left: Free, reason: str | None) -> None:
    refusal = misfit(spec(**wanted), IMAGE, left)
    assert (refusal and refusal.reason) == reason
    if refusal:
        assert refusal.code == "no-capacity"


def test_the_images_own_size_counts() -> None:
    assert misfit(spec(disk=1), Image("tiny", "/x", "qcow2", 3 * GIB, ""), Free(1, 1024, 2)) is not None


def test_a_missing_image_is_said_first_in_the_seeds_words() -> None:
    refusal = misfit(spec(cpus=99), None, Free(0, 0, 0))
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("image-unknown", 'Image "tiny" does not exist')


@MANY
@given(st.lists(specs, max_size=20))
def test_what_is_free_is_what_was_not_promised(promised: list[CreateVm]) -> None:
    total = HostResources(cpus=16, memory=32768, disk=500)
    left = free(total, promised)
    assert left.cpus + sum(s.cpus for s in promised) == 16
    assert left.memory + sum(s.memory for s in promised) == 32768
    assert left.disk + sum(s.disk for s in promised) == 500


def test_what_snapshots_take_beside_a_disk_is_not_free() -> None:
    vms = [spec(vm_id="sgeqxcfi", disk=10), spec(vm_id="abcdefgh", disk=10)]
    total = HostResources(cpus=16, memory=32768, disk=500, disk_taken={"sgeqxcfi": 90 * GIB - 1, "abcdefgh": 3})
    assert free(total, vms).disk == 500 - 90 - 10


def test_what_vms_may_still_write_is_not_rounded() -> None:
    total = HostResources(cpus=1, memory=1, disk=1, disk_taken={"sgeqxcfi": GIB + 7, "abcdefgh": 90 * GIB})
    assert unwritten(spec(vm_id="sgeqxcfi", disk=2), total) == GIB - 7
    assert unwritten(spec(vm_id="abcdefgh", disk=2), total) == 0
    assert unwritten(spec(vm_id="zzzzzzzz", disk=2), total) == 2 * GIB


@pytest.mark.parametrize(
    ("count", "room", "reason"),
    [
        (0, 10, None),
        (63, 500, None),
        (64, 500, "the VM has 64 snapshots, and can't have more"),
        (0, 9, "the guest could write its 10 GiB anew after a snapshot, and 9 GiB are free for VMs"),
    ],
)
def test_a_snapshot_needs_room_for_what_the_guest_writes_after_it(count: int, room: int, reason: str | None) -> None:
    """Beside what another VM, which has 10 GiB and has written 7, may still write."""
    total = HostResources(cpus=1, memory=1, disk=1, disk_taken={"abcdefgh": 7 * GIB}, disk_room=(room + 3) * GIB)
    mine = spec(vm_id="sgeqxcfi", disk=10)
    refusal = misfit_snapshot(mine, count, total, [mine, spec(vm_id="abcdefgh", disk=10)])
    assert (refusal and refusal.reason) == reason
    if refusal:
        assert (refusal.code, bool(refusal.hint)) == ("no-capacity", True)


@MANY
@given(st.lists(specs, max_size=60))
def test_what_fits_one_after_the_other_never_promises_too_much(wanted: list[CreateVm]) -> None:
    total = HostResources(cpus=16, memory=32768, disk=500)
    taken: list[CreateVm] = []
    for s in wanted:
        if misfit(s, IMAGE, free(total, taken)) is None:
            taken.append(with_disk(s, disk_gib(s, IMAGE)))
    left = free(total, taken)
    assert min(left.cpus, left.memory, left.disk) >= 0


@pytest.mark.parametrize(("memory", "points"), [(0, 0), (-1, 0), (1, 1), (32768, 32768)])
def test_the_score_is_the_free_memory(memory: int, points: int) -> None:
    assert score(Free(1, memory, 1)) == points


def test_with_disk_changes_the_disk_only() -> None:
    assert with_disk(spec(cpus=3, disk=1), 9) == spec(cpus=3, disk=9)
