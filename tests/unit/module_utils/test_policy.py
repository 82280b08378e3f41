# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is to be changed so that an agent allows or blocks RPCs: tried on every family's files, and on invented ones."""

from __future__ import annotations

import re

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from ansible_collections.kvm.fleet.plugins.module_utils._agent_config import read_config
from ansible_collections.kvm.fleet.plugins.module_utils._errors import InvalidRequest, PolicyUnsupported
from ansible_collections.kvm.fleet.plugins.module_utils._policy import (
    EXEC_RPCS,
    ChangedLine,
    FileChange,
    Wanted,
    plan,
)
from tests.unit.fake_files import EXEC, FAMILIES, FILES, SYSTEMD, UNIT, FakeFiles, Family

ENABLED = Wanted(EXEC_RPCS, allowed=True)
DISABLED = Wanted(EXEC_RPCS, allowed=False)
RPCS = (*FILES, *EXEC, "guest-ping", "guest-info", "guest-shutdown", "guest-unheard-of")


def apply(files: FakeFiles, wanted: Wanted, version: tuple[int, int] | None) -> tuple[FileChange, ...]:
    """Plan, write, and see that nothing is left to plan."""
    changes = plan(read_config(files, version), wanted)
    for change in changes:
        assert files.read(change.path) == change.before
        files.write(change.path, change.after)
    again = read_config(files, version)
    assert wanted.met_by(again.allows)
    assert plan(again, wanted) == ()
    return changes


def allowed_of(files: FakeFiles, version: tuple[int, int] | None) -> set[str]:
    config = read_config(files, version)
    return {rpc for rpc in RPCS if config.allows(rpc)}


# --- every family, as it ships -------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_a_family_ships_is_understood_and_changed_in_the_file_that_is_meant_for_it(family: Family) -> None:
    files = FakeFiles(family.files)
    before = allowed_of(files, family.version)
    assert [rpc for rpc in (*FILES, *EXEC) if rpc not in before] == list(family.blocked)
    [change] = apply(files, ENABLED, family.version)
    assert change.path == family.decides
    assert allowed_of(files, family.version) == before | set(EXEC)
    assert {path for path in files.contents if files.read(path) != FakeFiles(family.files).read(path)} == {change.path}

    [change] = apply(files, DISABLED, family.version)
    assert change.path == family.decides
    assert allowed_of(files, family.version) == before


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_other_lines_stay_as_they_are_to_the_byte(family: Family) -> None:
    files = FakeFiles(family.files)
    for wanted in (ENABLED, DISABLED):
        for change in apply(files, wanted, family.version):
            old, new = ((content or b"").decode().split("\n") for content in (change.before, change.after))
            changed = [(line.before, line.after) for line in change.lines()]
            assert len(changed) == 1
            assert [line for line in old if line != changed[0][0]] == [line for line in new if line != changed[0][1]]


def family(name: str) -> FakeFiles:
    return FakeFiles(next(found for found in FAMILIES if found.name == name).files)


@pytest.mark.parametrize(
    ("name", "version", "line"),
    [
        (
            "debian 12",
            (7, 2),
            ChangedLine("block-rpcs = guest-exec,guest-exec-status", "block-rpcs = "),
        ),
        (
            "rhel 7",
            (2, 12),
            ChangedLine(
                f"BLACKLIST_RPC={','.join(FILES)},guest-file-flush,guest-exec,guest-exec-status",
                f"BLACKLIST_RPC={','.join(FILES)},guest-file-flush",
            ),
        ),
        (
            "fedora",
            (9, 1),
            ChangedLine(
                'QEMU_GA_ARGS="-v --block-rpcs=guest-exec,guest-exec-status"', 'QEMU_GA_ARGS="-v --block-rpcs="'
            ),
        ),
        ("tumbleweed", (10, 0), ChangedLine(None, 'FILTER_RPC_ARGS="--block-rpcs="')),
        (
            "debian 12 without systemd",
            (7, 2),
            ChangedLine("DAEMON_ARGS='-v -b guest-exec,guest-exec-status'", "DAEMON_ARGS='-v'"),
        ),
    ],
)
def test_the_very_lines_that_change_are_told(name: str, version: tuple[int, int], line: ChangedLine) -> None:
    [change] = plan(read_config(family(name), version), ENABLED)
    assert change.lines() == [line]


def test_a_setting_that_blocks_is_told_by_file_line_and_text() -> None:
    [setting] = read_config(family("debian 12"), (7, 2)).settings_against("guest-exec")
    assert setting.facts() == {
        "path": "/etc/qemu/qemu-ga.conf",
        "line": 4,
        "text": "block-rpcs = guest-exec,guest-exec-status",
        "effect": "blocks it",
    }
    [setting] = read_config(family("rhel 9.4"), (8, 2)).settings_against("guest-file-open")
    assert (setting.path, setting.line, setting.effect) == ("/etc/sysconfig/qemu-ga", 6, "allows others only")
    assert read_config(family("rhel 9.4"), (8, 2)).settings_against("guest-ping") == []


# --- how systemd and qemu-ga put it together -----------------------------------------------------


def debian(conf: str | None = None, **more: str) -> FakeFiles:
    files = {**SYSTEMD, UNIT: "[Service]\nExecStart=-/usr/sbin/qemu-ga\n", **more}
    return FakeFiles(files if conf is None else {**files, "/etc/qemu/qemu-ga.conf": conf})


def service(*lines: str, **files: str) -> FakeFiles:
    """A guest whose administrator wrote the unit."""
    unit = "\n".join(["[Service]", *lines, ""])
    return FakeFiles({**SYSTEMD, "/etc/systemd/system/qemu-guest-agent.service": unit, **files})


def blocked(files: FakeFiles, version: tuple[int, int] | None = (9, 1)) -> list[str]:
    config = read_config(files, version)
    return [rpc for rpc in RPCS if not config.allows(rpc)]


@pytest.mark.parametrize(
    "lines",
    [
        ["ExecStart=/usr/bin/qemu-ga --block-rpcs=guest-exec"],
        ["ExecStart=-/usr/bin/qemu-ga -b guest-exec"],
        ["ExecStart=/usr/bin/qemu-ga -vbguest-exec -d"],
        ["ExecStart=/usr/bin/qemu-ga --bloc guest-exec"],
        ["ExecStart=/usr/bin/qemu-ga \\", "# why", "  '--blacklist=guest-exec'"],
        ["ExecStart=@/usr/bin/qemu-ga agent --block-rpcs=guest-exec"],
        ["ExecStart=/bin/false", "ExecStart=", "ExecStart=/usr/bin/qemu-ga -b guest-exec ; /bin/true"],
        ["Environment=A=1 'B=--block-rpcs=guest-exec'", "ExecStart=/usr/bin/qemu-ga $B"],
        ["Environment=B=exec", "ExecStart=/usr/bin/qemu-ga --block-rpcs=guest-${B}"],
        ["Environment=B=guest-ping", "EnvironmentFile=-/etc/b", "ExecStart=/usr/bin/qemu-ga --block-rpcs=${B}"],
        ["EnvironmentFile=/etc/no", "EnvironmentFile=", "EnvironmentFile=/etc/b", "ExecStart=/usr/bin/qemu-ga -b ${B}"],
        ["Environment=QGA_CONF=/etc/c", "ExecStart=/usr/bin/qemu-ga"],
        ["ExecStart=/usr/bin/qemu-ga -c /etc/c"],
        ["ExecStart=/usr/bin/qemu-ga --config=/etc/c"],
    ],
)
def test_a_command_line_is_taken_apart_as_systemd_and_getopt_do(lines: list[str]) -> None:
    more = {
        "/etc/b": "# comment\nB=guest-ping\n B = \"guest-\"'exec'\n",
        "/etc/no": "B=guest-info\n",
        "/etc/c": "[general]\nblock-rpcs=guest-exec\n",
    }
    assert blocked(service(*lines, **more)) == ["guest-exec"]


@pytest.mark.parametrize(
    "lines",
    [
        ["ExecStart=/usr/bin/qemu-ga -- --block-rpcs=guest-exec"],
        ["Environment=B=guest-exec", "ExecStart=:/usr/bin/qemu-ga --block-rpcs=${B}"],
        ["Environment=B=guest-exec", "ExecStart=/usr/bin/qemu-ga --block-rpcs=$$B"],
        ["ExecStart=/usr/bin/qemu-ga --block-rpcs=${B}"],
        ["ExecStart=/usr/bin/qemu-ga --block-rpcs= -F/hook,guest-exec"],
        ["ExecStart=/usr/bin/qemu-ga -p guest-exec -l --block-rpcs=guest-exec"],
        ["ExecStart=/usr/bin/qemu-ga '--block-rpcs=guest-ping2, guest-exec'"],
        ["ExecStart=/usr/bin/qemu-ga --allow-rpcs="],
    ],
)
def test_what_is_no_list_blocks_nothing(lines: list[str]) -> None:
    assert blocked(service(*lines)) == []


def test_lists_add_up_over_file_and_command_line() -> None:
    files = service("ExecStart=/usr/bin/qemu-ga -b guest-exec -b guest-ping")
    files.write("/etc/qemu/qemu-ga.conf", b"[general]\nblock-rpcs=guest-info\nblock-rpcs=guest-shutdown\n")
    assert blocked(files) == ["guest-exec", "guest-ping", "guest-shutdown"]


def test_what_a_block_list_names_is_blocked_although_it_is_allowed() -> None:
    conf = "[general]\nallow-rpcs=guest-ping,guest-exec\nblock-rpcs=guest-exec\n"
    assert set(RPCS) - set(blocked(debian(conf))) == {"guest-ping"}


@pytest.mark.parametrize(
    ("version", "key", "counts"),
    [
        ((7, 1), "block-rpcs", False),
        ((7, 2), "block-rpcs", True),
        ((9, 0), "blacklist", True),
        ((9, 1), "blacklist", False),
        (None, "blacklist", True),
        (None, "block-rpcs", True),
    ],
)
def test_a_key_that_the_agents_version_does_not_know_counts_for_nothing(
    version: tuple[int, int] | None, key: str, counts: bool
) -> None:
    assert (blocked(debian(f"[general]\n{key}=guest-exec\n"), version) == ["guest-exec"]) is counts


@pytest.mark.parametrize(("version", "names"), [((8, 0), []), ((8, 1), ["guest-exec"]), (None, ["guest-exec"])])
def test_an_allow_list_counts_from_the_version_that_brought_it(
    version: tuple[int, int] | None, names: list[str]
) -> None:
    others = [rpc for rpc in RPCS if rpc != "guest-exec"]
    assert blocked(debian("[general]\nallow-rpcs=guest-exec\n"), version) == (others if names else [])


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ((7, 1), ["guest-ping"]),
        ((9, 0), ["guest-ping"]),
        ((9, 1), ["guest-exec"]),
        (None, ["guest-exec", "guest-ping"]),
    ],
)
def test_the_old_name_of_a_key_takes_the_place_of_the_new_one(
    version: tuple[int, int] | None, names: list[str]
) -> None:
    assert blocked(debian("[general]\nblock-rpcs=guest-exec\nblacklist=guest-ping\n"), version) == names


def test_a_template_is_read_for_its_instance_and_that_ones_own_files_go_first() -> None:
    files = family("suse 15.3")
    config = read_config(files, (5, 2))
    assert config.unit == r"qemu-ga@virtio\x2dports-org.qemu.guest_agent.0.service"
    assert blocked(files, (5, 2)) == list(EXEC)
    etc = "/etc/systemd/system"
    files.write(f"{etc}/qemu-ga@.service.d/10-a.conf", b"[Service]\nEnvironment=B=guest-info\n")
    files.write(f"{etc}/qemu-ga@.service.d/20-b.conf", b"[Service]\nExecStart=\nExecStart=/usr/bin/qemu-ga -b ${B}\n")
    assert blocked(files, (5, 2)) == [*EXEC, "guest-info"]
    files.write(f"{etc}/{config.unit}.d/10-a.conf", b"[Service]\nEnvironment=B=guest-ping\n")
    assert blocked(files, (5, 2)) == [*EXEC, "guest-ping"]
    del files.contents[f"{etc}/qemu-ga@.service.d/20-b.conf"]
    files.write(
        f"/usr/lib/systemd/system/{config.unit}", b"[Service]\nExecStart=/usr/bin/qemu-ga -b ${B},guest-shutdown"
    )
    files.write(f"{etc}/qemu-ga@.service", b"[Service]\nExecStart=/usr/bin/qemu-ga\n")
    assert blocked(files, (5, 2)) == [*EXEC, "guest-ping", "guest-shutdown"]
    files.lists = False
    assert f"{etc}/qemu-ga@.service.d" in read_config(files, (5, 2)).unseen
    files.write(UNIT, b"[Service]\nExecStart=/usr/bin/qemu-ga\n")
    assert read_config(files, (5, 2)).unit == "qemu-guest-agent.service"


def test_drop_ins_are_read_by_their_names_and_the_first_directory_of_a_name_counts() -> None:
    files = service("Environment=B=guest-ping", "ExecStart=/usr/bin/qemu-ga -b ${B}")
    files.write("/etc/systemd/system/qemu-guest-agent.service.d/20-b.conf", b"[Service]\nEnvironment=B=guest-exec\n")
    files.write("/etc/systemd/system/qemu-guest-agent.service.d/10-a.conf", b"[Service]\nEnvironment=B=guest-info\n")
    files.write("/usr/lib/systemd/system/qemu-guest-agent.service.d/20-b.conf", b"[Service]\nEnvironment=B=guest-x\n")
    files.write("/usr/lib/systemd/system/service.d/15-all.conf", b"[Unit]\nEnvironment=B=guest-x\n")
    assert blocked(files) == ["guest-exec"]
    files.write("/etc/systemd/system/qemu-.service.d/30-c.conf", b"[Service]\nEnvironment=B=guest-ping\n")
    files.write("/usr/lib/systemd/system/qemu-guest-agent.service.d/30-c.conf", b"[Service]\nEnvironment=B=guest-x\n")
    files.write("/etc/systemd/system/service.d/30-c.conf", b"[Service]\nEnvironment=B=guest-x\n")
    assert blocked(files) == ["guest-ping"]
    assert read_config(files, (9, 1)).unseen == []


def test_where_directories_cannot_be_listed_the_usual_drop_in_is_found_and_the_rest_is_said_to_be_unseen() -> None:
    files = service("ExecStart=/usr/bin/qemu-ga")
    override = "/etc/systemd/system/qemu-guest-agent.service.d/override.conf"
    files.write(override, b"[Service]\nExecStart=\nExecStart=/usr/bin/qemu-ga -b guest-exec\n")
    files.lists = False
    assert blocked(files) == ["guest-exec"]
    assert "/etc/systemd/system/qemu-guest-agent.service.d" in read_config(files, (9, 1)).unseen


# --- what is edited, and where -------------------------------------------------------------------


def test_a_new_configuration_file_is_made_where_there_is_none() -> None:
    [change] = apply(debian(), DISABLED, (7, 2))
    assert (change.before, change.after) == (None, b"[general]\nblock-rpcs=guest-exec,guest-exec-status\n")
    [change] = apply(debian(), DISABLED, (5, 2))
    assert change.after == b"[general]\nblacklist=guest-exec,guest-exec-status\n"


@pytest.mark.parametrize(
    ("conf", "after"),
    [
        ("", "[general]\nblock-rpcs=guest-exec,guest-exec-status\n"),
        ("# mine", "# mine\n[general]\nblock-rpcs=guest-exec,guest-exec-status"),
        ("[general]", "[general]\nblock-rpcs=guest-exec,guest-exec-status"),
        ("[general]\r\nverbose=1\r\n", "[general]\r\nblock-rpcs=guest-exec,guest-exec-status\r\nverbose=1\r\n"),
        ("[general]\nblock-rpcs=guest-ping2", "[general]\nblock-rpcs=guest-ping2,guest-exec,guest-exec-status"),
        ("[general]\nblock-rpcs=\n[x]\na=\xff\n", "[general]\nblock-rpcs=guest-exec,guest-exec-status\n[x]\na=\xff\n"),
    ],
)
def test_a_configuration_file_keeps_its_line_ends_and_its_last_line(conf: str, after: str) -> None:
    files = debian()
    files.write("/etc/qemu/qemu-ga.conf", conf.encode("latin-1"))
    [change] = apply(files, DISABLED, (7, 2))
    assert change.after == after.encode("latin-1")


def test_only_what_is_not_blocked_yet_is_added() -> None:
    [change] = apply(debian("[general]\nblock-rpcs=guest-exec\n"), DISABLED, (7, 2))
    assert change.after == b"[general]\nblock-rpcs=guest-exec,guest-exec-status\n"


@pytest.mark.parametrize(
    ("release", "path"),
    [
        ("ID=debian", "/etc/qemu/qemu-ga.conf"),
        ("ID=fedora", "/etc/qemu/qemu-ga.conf"),
        ('ID="rhel"\nID_LIKE="fedora"', "/etc/qemu-kvm/qemu-ga.conf"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "/etc/qemu-kvm/qemu-ga.conf"),
        ('ID="ol"\nID_LIKE="fedora"', "/etc/qemu-kvm/qemu-ga.conf"),
    ],
)
def test_the_configuration_file_is_where_the_distribution_builds_it_to_be(release: str, path: str) -> None:
    [change] = apply(debian(**{"/etc/os-release": f"{release}\n"}), DISABLED, (9, 1))
    assert change.path == path


def test_an_allow_list_is_never_left_beside_a_new_block_list() -> None:
    """QEMU 8.1 to 9.0 refuse to start with both."""
    [change] = apply(debian(f"[general]\nallow-rpcs=guest-ping,{','.join(EXEC)}\n"), DISABLED, (8, 2))
    assert change.after == b"[general]\nallow-rpcs=guest-ping\n"
    with pytest.raises(PolicyUnsupported):
        plan(read_config(debian("[general]\nallow-rpcs=\n"), (8, 2)), DISABLED)
    apply(debian("[general]\nallow-rpcs=\n"), DISABLED, (9, 1))


def test_a_variable_that_the_unit_has_no_value_for_is_set_in_its_file() -> None:
    unit = "ExecStart=/usr/bin/qemu-ga --block-rpcs=${BLOCK_RPCS}"
    files = service("EnvironmentFile=/etc/sysconfig/qemu-ga", unit, **{"/etc/sysconfig/qemu-ga": "# BLOCK_RPCS=\n"})
    [change] = apply(files, DISABLED, (7, 2))
    assert change.after == b'# BLOCK_RPCS=\nBLOCK_RPCS="guest-exec,guest-exec-status"\n'


def test_a_variable_for_options_gets_the_option_that_it_lacks() -> None:
    files = service("EnvironmentFile=-/etc/x", "ExecStart=/usr/bin/qemu-ga $FILTER_RPC_ARGS", **{"/etc/x": ""})
    [change] = apply(files, DISABLED, (9, 1))
    assert change.after == b'FILTER_RPC_ARGS="--block-rpcs=guest-exec,guest-exec-status"\n'
    files.write("/etc/x", b'FILTER_RPC_ARGS="-v"')
    [change] = apply(files, DISABLED, (9, 1))
    assert change.after == b'FILTER_RPC_ARGS="-v --block-rpcs=guest-exec,guest-exec-status"'


@pytest.mark.parametrize(
    ("exec_start", "after"),
    [
        ("/usr/bin/qemu-ga -v -b guest-exec -d", "/usr/bin/qemu-ga -v -d"),
        ("/usr/bin/qemu-ga -vb guest-exec -d", "/usr/bin/qemu-ga -v -d"),
        ("/usr/bin/qemu-ga -vbguest-exec -d", "/usr/bin/qemu-ga -v -d"),
        ("/usr/bin/qemu-ga -bguest-exec -d", "/usr/bin/qemu-ga -d"),
        ("/usr/bin/qemu-ga --block-rpcs guest-exec,guest-x", "/usr/bin/qemu-ga --block-rpcs guest-x"),
        ("/usr/bin/qemu-ga --block-rpcs=guest-a,guest-exec", "/usr/bin/qemu-ga --block-rpcs=guest-a"),
        ("/usr/bin/qemu-ga '--block-rpcs=guest-exec'", "/usr/bin/qemu-ga '--block-rpcs='"),
        ("/usr/bin/qemu-ga -b guest-exec -b guest-exec,guest-a", "/usr/bin/qemu-ga -b guest-a"),
    ],
)
def test_a_command_line_of_the_administrators_own_is_edited(exec_start: str, after: str) -> None:
    [change] = apply(service(f"ExecStart={exec_start}"), ENABLED, (9, 1))
    assert change.lines() == [ChangedLine(f"ExecStart={exec_start}", f"ExecStart={after}")]


@pytest.mark.parametrize(
    ("files", "place"),
    [
        (FakeFiles({**SYSTEMD, UNIT: "[Service]\n\nExecStart=/x/qemu-ga -b guest-exec\n"}), f"{UNIT}, line 3"),
        (FakeFiles({**SYSTEMD, UNIT: "[Service]\nExecStart=/bin/sh -c qemu-ga\n"}), f"{UNIT}, line 2"),
        (FakeFiles({**SYSTEMD, UNIT: "[Service]\nExecStart=qemu-ga 'x\n"}), f"{UNIT}, line 2"),
        (FakeFiles({**SYSTEMD, UNIT: "[Service]\nExecStart=qemu-ga \\x41\n"}), f"{UNIT}, line 2"),
        (FakeFiles({**SYSTEMD, UNIT: "[Service]\nExecStart=qemu-ga\nEnvironmentFile=/etc/%n\n"}), f"{UNIT}, line 3"),
        (service("EnvironmentFile=/etc/a", "ExecStart=qemu-ga", **{"/etc/a": "A=1\nB='x\n"}), "/etc/a, line 2"),
        (service("EnvironmentFile=/etc/a", "ExecStart=qemu-ga", **{"/etc/a": "# x\\\nA=1\n"}), "/etc/a, line 1"),
        (debian("[general]\nnonsense\n"), "/etc/qemu/qemu-ga.conf, line 2"),
        (debian("block-rpcs=guest-exec\n"), "/etc/qemu/qemu-ga.conf, line 1"),
        (debian("[general]\nblock-rpcs=guest\\sexec\n"), "/etc/qemu/qemu-ga.conf, line 2"),
        (service("ExecStart=qemu-ga -b guest-exec,%i"), "service, line 2"),
        (service("Environment=C=/etc/%i", "ExecStart=qemu-ga -c ${C}"), "service, line 2"),
        (service("Environment=QGA_CONF=/etc/%i", "ExecStart=qemu-ga"), "service, line 2"),
        (service("Environment=B=exec", "ExecStart=qemu-ga -b guest-${B} -b guest-exec"), "service, line 3"),
    ],
)
def test_what_cannot_be_edited_is_refused_by_file_and_line(files: FakeFiles, place: str) -> None:
    with pytest.raises(PolicyUnsupported, match=re.escape(place)) as refused:
        plan(read_config(files, (9, 1)), Wanted(("guest-exec",), allowed=True))
    assert refused.value.evidence["line"] == int(place.rpartition(" ")[2])


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({**SYSTEMD}, "has no qemu-guest-agent.service"),
        ({"/proc/1/comm": "init"}, "has no /etc/init.d/qemu-guest-agent"),
        ({**SYSTEMD, "/etc/systemd/system/qemu-guest-agent.service": ""}, "0 commands"),
        (
            {
                "/proc/1/comm": "x",
                "/etc/init.d/qemu-guest-agent": "",
                "/etc/default/qemu-guest-agent": 'DAEMON_ARGS="$X"',
            },
            "more than a plain value",
        ),
    ],
)
def test_a_guest_whose_agent_is_started_otherwise_is_refused(contents: dict[str, str], words: str) -> None:
    with pytest.raises(PolicyUnsupported, match=re.escape(words)):
        read_config(FakeFiles(contents), None)


def test_an_image_has_no_processes_to_tell_its_init_system_by() -> None:
    files = family("debian 12")
    del files.contents["/proc/1/comm"]
    assert read_config(files, (7, 2)).systemd
    files.write("/etc/inittab", b"id:2:initdefault:\n")
    assert not read_config(files, (7, 2)).systemd
    files.write("/etc/inittab", b"# inittab is no longer used.\n\n")
    assert read_config(files, (7, 2)).systemd
    del files.contents["/etc/init.d/qemu-guest-agent"]
    files.write("/etc/inittab", b"id:2:initdefault:\n")
    assert read_config(files, (7, 2)).systemd


def test_an_agent_of_unknown_version_gets_no_new_block_list() -> None:
    with pytest.raises(PolicyUnsupported, match="version is not known"):
        plan(read_config(debian(), None), DISABLED)
    apply(debian("[general]\nblock-rpcs=guest-x\n"), DISABLED, None)


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted((), allowed=True),
        Wanted(("guest-exec,guest-ping",), allowed=True),
        Wanted(("quit",), allowed=True),
        Wanted(("guest-exec", "guest-sync"), allowed=False),
    ],
)
def test_what_cannot_be_meant_is_refused(wanted: Wanted) -> None:
    with pytest.raises(InvalidRequest):
        wanted.check()


# --- whatever the files say ----------------------------------------------------------------------

names = st.lists(st.sampled_from(["guest-exec", "guest-exec-status", "guest-a", "guest-ping", "", " guest-exec"]))
lists = names.map(",".join)
noise = st.sampled_from(["", "# block-rpcs=guest-exec", "; x", "  ", "X=1"])
newlines = st.sampled_from(["\n", "\r\n"])


@st.composite
def environments(draw: st.DrawFn) -> str:
    quote = draw(st.sampled_from(["", "'", '"']))
    options = draw(
        st.lists(
            st.one_of(
                lists.map(lambda names: f"--block-rpcs={names}"),
                lists.map(lambda names: f"--allow-rpcs={names}"),
                lists.filter(bool).map(lambda names: f"-b {names}"),
                st.sampled_from(["-v", "-d", "-F/hook"]),
            ),
            max_size=3,
        )
    )
    lines = [
        *draw(st.lists(noise, max_size=2)),
        f"BLOCK={quote}{draw(lists)}{quote}",
        *draw(st.lists(noise, max_size=2)),
        f"FILTER_RPC_ARGS={quote}{' '.join(options)}{quote}",
    ]
    newline = draw(newlines)
    return newline.join(lines) + draw(st.sampled_from(["", newline]))


@st.composite
def configurations(draw: st.DrawFn) -> str:
    keys = draw(st.lists(st.tuples(st.sampled_from(["block-rpcs", "allow-rpcs", "verbose"]), lists), max_size=3))
    blank = draw(st.sampled_from(["", " "]))
    newline = draw(newlines)
    lines = [
        "[general]",
        *[f"{key}{blank}={blank}{value}" for key, value in keys],
        *draw(st.lists(st.just("#"), max_size=1)),
    ]
    return newline.join(lines) + draw(st.sampled_from(["", newline]))


UNITS = [
    ["EnvironmentFile=-/usr/etc/x", "EnvironmentFile=-/etc/x", "ExecStart=/q/qemu-ga -v $FILTER_RPC_ARGS -d"],
    ["EnvironmentFile=-/usr/etc/x", "EnvironmentFile=-/etc/x", "ExecStart=/q/qemu-ga --block-rpcs=${BLOCK} -d"],
]


@given(
    unit=st.sampled_from(UNITS),
    vendors=environments(),
    own=st.none() | environments(),
    conf=configurations(),
    allowed=st.booleans(),
    version=st.sampled_from([(8, 2), (9, 1), None]),
)
def test_a_plan_brings_about_what_is_wanted_and_nothing_else(
    *, unit: list[str], vendors: str, own: str | None, conf: str, allowed: bool, version: tuple[int, int] | None
) -> None:
    more = {"/usr/etc/x": vendors, "/etc/qemu/qemu-ga.conf": conf, **({} if own is None else {"/etc/x": own})}
    files = service(*unit, **more)
    before, arguments = allowed_of(files, version), read_config(files, version).arguments
    wanted = Wanted(EXEC_RPCS, allowed)
    try:
        changes = apply(files, wanted, version)
    except PolicyUnsupported:
        event("refused")
        assert files.written == []
        return
    event("changed" if changes else "so already")
    assert allowed_of(files, version) - set(EXEC) == before - set(EXEC)
    assert read_config(files, version).arguments == arguments
    assert files.text("/usr/etc/x") == vendors
    for change in changes:
        old, new = ((content or b"").decode().split("\n") for content in (change.before, change.after))
        is_list = re.compile(r"^(BLOCK|FILTER_RPC_ARGS|block-rpcs|allow-rpcs)|^$")
        kept = [[line.rstrip("\r") for line in lines if not is_list.match(line)] for lines in (old, new)]
        assert kept[1][: len(kept[0])] == kept[0]
