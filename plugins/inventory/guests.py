# Copyright: Contributors to kvm.fleet
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: guests
short_description: The guests of hypervisors as hosts
version_added: 0.1.0
author:
  - Contributors to kvm.fleet (@kvm-fleet)
description:
  - Makes every domain of the hypervisors a host, with variables by which the collection's playbooks find it, and groups
    by how it is.
  - The hypervisors are looked at by M(kvm.fleet.domain_info), which Ansible runs on them as it runs any task there,
    with the inventories that were parsed before this one. Nothing is needed on the controller but Ansible.
  - A hypervisor that cannot be looked at is told of by a warning and is in the group C(unreachable_hypervisors). Its
    guests are missing.
  - A guest has the name of its domain, with colons written as C(%3A), or C(DOMAIN@HYPERVISOR) where that name is taken
    by another guest or host. A host of an inventory that was parsed before, which says by C(kvm_hypervisor) and
    C(kvm_domain) to be a guest, keeps its name and gets the variables and groups. Where these two or C(kvm_uri) are
    templates, they can use the host's own variables, not those of other hosts.
  - The file's name has to be C(kvm_fleet.yml), to end in C(.kvm.yml), or likewise with C(.yaml).
requirements:
  - libvirt-python on the hypervisors
notes:
  - Passwords that Ansible asks for (C(--ask-pass), C(--ask-become-pass), a prompt for a vault's) are not known when
    inventories are parsed. Variables, files and keys are.
  - Each guest has the variables C(kvm_hypervisor), C(kvm_domain), C(kvm_uri) where it is not C(qemu:///system),
    C(kvm_uuid), C(kvm_state), C(kvm_os), C(kvm_drift) (C(none), C(drifted), C(unknown) or C(not_running)),
    C(kvm_drift_reasons), C(kvm_agent_channel), C(kvm_run) and C(kvm_hints_problem), all as M(kvm.fleet.domain_info)
    returns them.
  - C(kvm_tags), C(kvm_depends_on), C(kvm_group), C(kvm_group_at_once) and C(kvm_canary) come from the metadata of the
    domain, unless an inventory that was parsed before, or a file beside one, has that variable for the guest or for one
    of its groups. Where the metadata has none, C(kvm_tags) is an empty list and the others are not defined.
  - With O(ask_guests), also C(kvm_guest_agent), C(kvm_guest_agent_version), C(kvm_guest_exec) (whether the agent allows
    it), C(kvm_guest_os), C(kvm_guest_reboot_required) and C(kvm_guest_problems), as M(kvm.fleet.guest_info) returns
    them. What a guest says of itself is to be believed as far as the guest is.
  - Nothing that comes from a hypervisor or a guest is taken for a template.
  - Each guest is in C(kvm_guests), and in those of C(running), C(off), C(drifted), C(drift_unknown), C(agent_missing)
    (it runs, and nobody in it listens to the agent's channel, if it has one) and, with O(ask_guests),
    C(guest_exec_blocked) that are true of it.
extends_documentation_fragment:
  - constructed
  - inventory_cache
options:
  plugin:
    description: Marks the file as one of this plugin.
    type: str
    required: true
    choices: [kvm.fleet.guests]
  hypervisors:
    description:
      - The hypervisors by name, with ranges as in C(kvm[01:10]). Their variables are taken from inventories that were
        parsed before, and from C(host_vars) and C(group_vars) beside those and beside this file.
      - Without it, the hosts of O(group).
    type: list
    elements: str
  group:
    description:
      - The group of the hypervisors, from an inventory that was parsed before. Those of O(hypervisors) are put into it.
      - The playbooks look for hypervisors in C(kvm_hypervisors).
    type: str
    default: kvm_hypervisors
  filters:
    description:
      - Conditions, as in C(when). A guest becomes a host if all of them are true.
      - They know C(inventory_hostname), the variables that the notes below tell of and, of a guest that an inventory
        parsed before has, all that it has there. They do not know O(compose), nor what files say of a new guest or of
        its groups.
      - A condition on a variable that is not defined is an error, and no guest becomes a host. C(default) avoids that,
        as in C(kvm_group | default('') == 'web').
      - The hypervisors then get C(kvm_only_listed), so that the playbooks leave guests alone that are no hosts. They
        get it also where the guests cannot be found out.
    type: list
    elements: str
    default: []
  ask_guests:
    description:
      - Whether the agents of running guests are asked, too. That is done for one guest of a hypervisor after the other
        and takes about 20 requests for each, while all else takes a few questions to libvirt and one for each guest.
    type: bool
    default: false
  timeout:
    description: Seconds that each hypervisor has to answer, and as many for its guests to be asked.
    type: int
    default: 120
"""

EXAMPLES = r"""
# fleet.kvm.yml, used as: ansible-playbook -i hypervisors.yml -i fleet.kvm.yml kvm.fleet.upgrade --limit drifted
plugin: kvm.fleet.guests

---
# With the hypervisors named, it needs no other inventory.
plugin: kvm.fleet.guests
hypervisors:
  - hypervisor1
  - hypervisor2
ask_guests: true
# A group for each tag, such as tag_web, and for each system, such as os_debian
keyed_groups:
  - prefix: tag
    key: kvm_tags
  - prefix: os
    key: kvm_guest_os.id
groups:
  reboot: kvm_guest_reboot_required
compose:
  ansible_host: kvm_domain ~ '.example.com'
filters:
  - "'lab' not in kvm_tags"
  - kvm_state == 'running'
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: /var/tmp/kvm-fleet
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 - as everybody calls it
from ansible import context
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.helpers import get_group_vars
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import wrap_var
from ansible.utils.vars import combine_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

from ansible_collections.kvm.fleet.plugins.plugin_utils import _inventory
from ansible_collections.kvm.fleet.plugins.plugin_utils._ad_hoc import AdHoc, AdHocFailed
from ansible_collections.kvm.fleet.plugins.plugin_utils._inventory import Entry, Look
from ansible_collections.kvm.fleet.plugins.plugin_utils._selection import is_guest

_NAMES = ("kvm_fleet.yml", "kvm_fleet.yaml")
_ENDINGS = (".kvm.yml", ".kvm.yaml")
_PLACE = ("kvm_hypervisor", "kvm_domain", "kvm_uri")

_Hosts = Mapping[str, Mapping[str, Any]]


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    NAME = "kvm.fleet.guests"
    _into: Any
    """The inventory that the guests come into."""

    def verify_file(self, path: str) -> bool:
        return Path(path).is_file() and (Path(path).name in _NAMES or path.endswith(_ENDINGS))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._into = inventory
        unknown = _inventory.unknown_options(self._read_config_data(path), self._options)
        hypervisors = self._hypervisors(path)
        # Ansible goes on without an inventory that fails, and the hypervisors are there all the same. So this comes
        # first. An option that is none may have been meant for filters.
        if self.get_option("filters") or unknown:
            for name in hypervisors:
                self._into.set_variable(name, "kvm_only_listed", True)
        if unknown:
            raise AnsibleParserError(f"{path}: no option is named {', '.join(unknown)}")
        if self.get_option("timeout") < 1:
            raise AnsibleParserError(f"{path}: timeout is {self.get_option('timeout')}; it can be 1 or more seconds")
        # Before any guest of this one is there
        known = {name: self._placed(name, self._known(name, path)) for name in inventory.hosts}
        looks = self._cached_looks(hypervisors, path, cache=cache)
        self._warn(looks)
        wanted = [
            entry for entry in _inventory.entries(looks, known) if self._is_wanted(entry, known.get(entry.name, {}))
        ]
        self._add_groups(looks)
        for entry in wanted:
            self._add(entry, path)

    # --- hypervisors --------------------------------------------------------------------------------

    def _hypervisors(self, path: str) -> _Hosts:
        """The hypervisors, with variables that their names themselves contain."""
        named, group = self.get_option("hypervisors"), self.get_option("group")
        if named is None:
            if group not in self._into.groups:
                raise AnsibleParserError(
                    f"{path}: no inventory that was parsed before has a group {group!r}. Put one before it, as in "
                    "'-i hypervisors.yml -i fleet.kvm.yml', or name the hypervisors in the option hypervisors"
                )
            found: dict[str, dict[str, Any]] = {host.name: {} for host in self._into.groups[group].get_hosts()}
            if not found:
                raise AnsibleParserError(f"{path}: the group {group!r} has no hosts")
            return found
        found = {}
        for pattern in named:
            names, port = self._expand_hostpattern(pattern)
            found.update({name: {} if port is None else {"ansible_port": port} for name in names})
        if not found:
            raise AnsibleParserError(f"{path}: hypervisors is empty. Name some, or leave it out to use a group")
        self._into.add_group(group)
        for name, variables in found.items():
            self._into.add_host(name, group=group, port=variables.get("ansible_port"))
        return found

    def _cached_looks(self, hypervisors: _Hosts, path: str, *, cache: bool) -> dict[str, Look]:
        ask, keeps = self.get_option("ask_guests"), self.get_option("cache")
        key = self.get_cache_key(path)
        looks = _inventory.reusable(self._cache.get(key, {}), hypervisors, ask=ask) if keeps and cache else {}
        others = {name: variables for name, variables in hypervisors.items() if name not in looks}
        if others:
            looks.update(self._look(others, path, ask=ask))
            if keeps:
                self._cache[key] = _inventory.worth_keeping(looks)
        return {name: looks[name] for name in hypervisors}

    def _look(self, hypervisors: _Hosts, path: str, *, ask: bool) -> dict[str, Look]:
        group, settings = self.get_option("group"), C.config
        ansible = AdHoc(
            sources=self._into.processed_sources,
            directory=Path(path).resolve().parent,
            options=context.CLIARGS,
            timeout=self.get_option("timeout"),
            forks=context.CLIARGS.get("forks") or settings.get_config_value("DEFAULT_FORKS"),
            environment={
                # The modules are where this plugin is, and the inventory that names the hypervisors is YAML.
                "ANSIBLE_COLLECTIONS_PATH": ":".join(
                    [str(Path(__file__).parents[5]), *settings.get_config_value("COLLECTIONS_PATHS")]
                ),
                "ANSIBLE_INVENTORY_ENABLED": ",".join(
                    dict.fromkeys([*settings.get_config_value("INVENTORY_ENABLED"), "yaml"])
                ),
            },
        )
        uri = {"uri": "{{ kvm_uri | default('qemu:///system', true) }}"}
        asked: dict[str, dict[str, Any]] = {}
        try:
            seen = ansible.run("kvm.fleet.domain_info", {**uri, "snapshots": False}, hypervisors, group)
            there = {name: hypervisors[name] for name, result in seen.items() if "domains" in result}
            if ask and there:
                asked = ansible.run("kvm.fleet.guest_info", uri, there, group)
        except AdHocFailed as error:
            raise AnsibleParserError(f"{path}: the hypervisors cannot be looked at: {error}") from error
        return {name: _inventory.look(seen[name], asked.get(name)) for name in hypervisors}

    def _warn(self, looks: Mapping[str, Look]) -> None:
        for failed in _inventory.failures(looks).values():
            cause = f"{failed['msg']} ({failed['error_code']}). {failed['remedy']}"
            self.display.warning(f"{cause} Its guests are missing from the inventory.")
        for name, cause in _inventory.unasked(looks).items():
            self.display.warning(f"the guests of {name} could not be asked: {cause}")

    # --- guests -------------------------------------------------------------------------------------

    def _add_groups(self, looks: Mapping[str, Look]) -> None:
        groups = [
            _inventory.GUESTS,
            _inventory.UNREACHABLE,
            *_inventory.state_groups(asked=self.get_option("ask_guests")),
        ]
        for group in groups:
            self._into.add_group(group)
        for name, look in looks.items():
            if not look.succeeded:
                self._into.add_child(_inventory.UNREACHABLE, name)

    def _is_wanted(self, entry: Entry, known: Mapping[str, Any]) -> bool:
        variables = {**entry.hints, **known, **entry.variables, "inventory_hostname": entry.name}
        return all(self._holds(condition, wrap_var(variables), entry.name) for condition in self.get_option("filters"))

    def _holds(self, condition: str, variables: Mapping[str, Any], name: str) -> bool:
        try:
            return bool(boolean(self._compose(condition, variables)))
        except (AnsibleError, TypeError) as error:
            raise AnsibleParserError(f"filters: {condition!r} is neither true nor false of {name}: {error}") from error

    def _add(self, entry: Entry, path: str) -> None:
        name, strict = entry.name, self.get_option("strict")
        self._into.add_host(name)
        for group in entry.groups:
            self._into.add_child(group, name)
        for variable, value in entry.variables.items():
            self._into.set_variable(name, variable, wrap_var(value))
        variables = {**wrap_var(dict(entry.hints)), **self._known(name, path)}
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        variables = {**wrap_var(dict(entry.hints)), **self._known(name, path)}
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)
        # Now that its groups are known: what they say goes before what the domain's metadata does.
        said = self._known(name, path)
        for variable, value in entry.hints.items():
            if variable not in said:
                self._into.set_variable(name, variable, wrap_var(value))

    def _known(self, name: str, path: str) -> dict[str, Any]:
        """The variables of a host by the inventories so far, and by what is beside them and beside this one."""
        host = self._into.hosts[name]
        groups = list(dict.fromkeys([self._into.groups["all"], *host.get_groups()]))
        sources = [*self._into.processed_sources, path]
        of_groups = combine_vars(get_group_vars(groups), self._beside(sources, groups))
        found: dict[str, Any] = combine_vars(of_groups, combine_vars(host.get_vars(), self._beside(sources, [host])))
        return found

    def _placed(self, name: str, known: dict[str, Any]) -> dict[str, Any]:
        """Its variables, of which those that say where a guest is are no templates any more."""
        if not is_guest(known):
            return known
        placed = dict(known)
        self.templar.available_variables = known
        for variable in _PLACE:
            if variable in known:
                try:
                    placed[variable] = self.templar.template(known[variable])
                except AnsibleError as error:
                    raise AnsibleParserError(
                        f"{variable} of {name} is a template, which can use no more here than the host's own variables "
                        f"of the inventory: {error}"
                    ) from error
        return placed

    def _beside(self, sources: Iterable[str], entities: Iterable[Any]) -> Any:
        return get_vars_from_inventory_sources(self.loader, sources, entities, "all")
