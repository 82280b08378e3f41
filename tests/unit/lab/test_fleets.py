# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fleets of hypervisors: where things are, what Ansible and sshd are told, which fleet belongs to whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import cli, fleets, hypervisor, network, sshd, view
from lab.errors import LabError
from lab.fleets import Fleet
from lab.network import Network
from lab.places import FLEETS, HERE, RUN_RECORDS, Place
from lab.process import Process, this_process

DEAD = Process(2**22 + 1, 1)
UUID = "6b1c1c3e-7a52-4f0c-9c0e-2f6f6a3c7b11"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No fleet, and no link, of this machine."""
    monkeypatch.setattr(fleets, "FLEETS", tmp_path / "fleets")
    monkeypatch.setattr(network, "LINKS", tmp_path / "links")
    (tmp_path / "links").mkdir()


class TestPlace:
    @pytest.fixture
    def place(self) -> Place:
        return Fleet(3, 2, None).hypervisors[0].place

    def test_on_this_machine_everything_is_where_it_is_named(self) -> None:
        for path in (HERE.emulator, HERE.disk_path(UUID), RUN_RECORDS):
            assert HERE.found(path) == path

    def test_what_a_hypervisor_has_for_itself_is_found_below_its_own_folder(self, place: Place) -> None:
        own = Fleet(3, 2, None).directory / "hypervisor1"
        for path in (place.emulator, place.private_emulator(UUID), RUN_RECORDS, Path("/etc/libvirt/qemu.conf")):
            assert place.found(path).is_relative_to(own)
        assert place.run_record(UUID) == own / "own/var/lib/kvm-fleet/runs" / f"{UUID}.json"
        assert place.uri == f"qemu+unix:///system?socket={own}/own/run/libvirt/libvirt-sock"

    def test_only_whole_names_of_folders_count(self, place: Place) -> None:
        for path in (Path("/runner/x"), Path("/etc/libvirtx"), Path("/etc")):
            assert place.found(path) == path

    def test_guests_disks_are_the_same_for_all_of_a_fleet(self, place: Place) -> None:
        _one, two = Fleet(3, 2, None).hypervisors
        assert place.found(place.disk_path(UUID)) == place.disk_path(UUID) == two.place.disk_path(UUID)
        assert place.emulator == two.place.emulator
        assert place.found(place.emulator) != two.place.found(two.place.emulator)

    def test_a_socket_has_a_path_that_the_kernel_takes(self) -> None:
        last = Fleet(network.MOST, fleets.MOST_HYPERVISORS, None).hypervisors[-1].view
        longest = view.View(last.name, FLEETS / "99" / last.name, Path("/q"), Path("/g"), "")
        assert len(longest.place.uri.partition("socket=")[2]) < 108


class TestNetwork:
    def test_names_of_links_are_short_enough_and_no_others(self) -> None:
        links = [Network(number).cable(index) for number in (1, 11, 99) for index in (1, 11, 99)]
        names = [*links, *(Network(number).bridge for number in (1, 11, 99))]
        assert len(set(names)) == len(names)
        assert max(map(len, names)) <= 15

    def test_a_number_whose_links_are_there_is_not_free(self, tmp_path: Path) -> None:
        for name in (Network(1).cable(7), Network(12).bridge, "eth0"):
            (tmp_path / "links" / name).mkdir()
        assert [number for number in range(1, 13) if not Network(number).free()] == [1, 12]

    def test_this_machine_is_not_where_hypervisors_are_among_themselves(self) -> None:
        wire = Network(4)
        assert (wire.address(2), wire.address_among_hypervisors(2)) == ("198.18.4.12", "198.19.4.12")


class TestSshd:
    def test_root_is_let_in_by_the_key_alone(self, tmp_path: Path) -> None:
        said = sshd.settings(tmp_path, "198.18.1.11", Path("/")).splitlines()
        assert {"PermitRootLogin prohibit-password", "PasswordAuthentication no"} <= {*said}
        assert f"AuthorizedKeysFile {tmp_path}/authorized_keys" in said
        assert not any(line.startswith(tuple(sshd.PARTS)) for line in said)

    def test_parts_of_an_unpacked_sshd_are_named_where_there_are_some(self, tmp_path: Path) -> None:
        session = tmp_path / sshd.PARTS["SshdSessionPath"]
        session.parent.mkdir(parents=True)
        session.touch()
        said = sshd.settings(tmp_path, "198.18.1.11", tmp_path).splitlines()
        assert f"SshdSessionPath {session}" in said
        assert not any(line.startswith("SshdAuthPath") for line in said)

    def test_its_user_is_added_once(self) -> None:
        bare = "root:x:0:0:root:/root:/bin/bash\nsshdx:x:1:1::/:/bin/sh"
        assert view.with_sshd(bare).startswith(f"{bare}\nsshd:x:")
        assert view.with_sshd(view.with_sshd(bare)) == view.with_sshd(bare)


class TestFleet:
    def test_ansible_is_told_of_each_hypervisor_and_checks_its_key(self) -> None:
        fleet = Fleet(5, 2, None)
        fleet.write_down()
        told = json.loads(fleet.inventory.read_text(encoding="utf-8"))["kvm_hypervisors"]
        assert told["hosts"] == {
            f"hypervisor{index}": {
                "ansible_host": f"198.18.5.1{index}",
                "kvm_migration_uri": f"qemu+tcp://hypervisor{index}/system",
            }
            for index in (1, 2)
        }
        assert f"UserKnownHostsFile={fleet.directory}/known_hosts" in told["vars"]["ansible_ssh_common_args"]
        assert told["vars"]["ansible_host_key_checking"] is True

    def test_a_fleet_is_found_again_as_it_was_made(self) -> None:
        made = [Fleet(1, 3, None), Fleet(2, 2, this_process()), Fleet(10, 1, DEAD)]
        for fleet in made:
            fleet.write_down()
        assert sorted(fleets.existing(), key=lambda fleet: fleet.number) == made
        assert fleets.standing() == made[0]
        assert fleets.abandoned() == [made[2]]

    @pytest.mark.parametrize("record", [None, "", '{"count": '])
    def test_one_whose_maker_died_at_its_first_step_is_abandoned_and_removed(self, record: str | None) -> None:
        directory = Fleet(7, 0, None).directory
        directory.mkdir(parents=True)
        if record is not None:
            (directory / "fleet.json").write_text(record, encoding="utf-8")
        assert fleets.standing() is None
        fleets.remove_all(fleets.abandoned())
        assert fleets.existing() == []

    def test_of_one_that_cannot_be_started_nothing_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_argv: object, **_options: object) -> str:
            raise LabError("no keys here", "see why")

        monkeypatch.setattr("lab.ssh.run", refuse)
        with pytest.raises(LabError, match="no keys here"):
            fleets.make(2, None)
        assert fleets.existing() == []

    @pytest.mark.parametrize("count", [0, -1, 100])
    def test_an_impossible_number_of_hypervisors_is_refused(self, count: int) -> None:
        with pytest.raises(LabError, match=f"cannot have {count} hypervisors"):
            fleets.make(count, None)

    def test_migrations_lead_where_the_target_is_known_by_name(self) -> None:
        one, two = Fleet(6, 2, None).hypervisors
        assert two.uri_among_hypervisors == "qemu+tcp://hypervisor2/system"
        assert "198.19.6.12 hypervisor2\n" in one.view.hosts
        assert one.view.hosts == two.view.hosts

    def test_the_way_to_libvirt_that_asks_for_no_name_is_for_root_alone(self) -> None:
        assert 'auth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\n' in hypervisor.LIBVIRTD_SETTINGS


def test_this_machine_is_the_hypervisor_unless_asked_for_others() -> None:
    assert cli.parser().parse_args(["up"]).hypervisors is None
    assert cli.parser().parse_args(["up", "--hypervisors", "2"]).hypervisors == 2
