# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parameters of the module as declarations, and its arguments as its documentation has them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import kafka_admin, kafka_plan
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_declared import (
    DeclarationError,
    config_text,
    wanted,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_plan import Acl, Quota, Topic, User, Wanted
from ansible_collections.groundplane.onprem.plugins.modules import kafka_resources

NOTHING: dict[str, Any] = {"topics": [], "acls": [], "quotas": [], "users": []}


def filled(spec: dict[str, Any], **given: Any) -> dict[str, Any]:
    """Parameters as Ansible hands them over."""
    return {name: given.get(name, option.get("default")) for name, option in spec.items()}


def test_parameters_are_declarations() -> None:
    rule = {"principal": "User:x", "resource_type": "topic", "resource_name": "t"}
    assert wanted(
        {
            "topics": [
                filled(kafka_resources.TOPIC, name="t", partitions=3, configs={"a": 1, "b": True, "c": None}),
                filled(kafka_resources.TOPIC, name="old", state="absent"),
            ],
            "acls": [
                filled(kafka_resources.ACL, **rule, operations=["read", "write"]),
                filled(kafka_resources.ACL, **rule, operations=["alter"], state="absent"),
            ],
            "quotas": [
                filled(kafka_resources.QUOTA, user="x", client_id="<default>", values={"producer_byte_rate": "10"}),
                filled(kafka_resources.QUOTA, ip="192.0.2.1", state="absent"),
            ],
            "users": [filled(kafka_resources.USER, name="x", password="p")],
        }
    ) == Wanted(
        (Topic("t", 3, configs={"a": "1", "b": "true", "c": None}), Topic("old", present=False)),
        tuple(Acl("topic", "t", "literal", "User:x", "*", name, "allow") for name in ("read", "write")),
        (Acl("topic", "t", "literal", "User:x", "*", "alter", "allow"),),
        (
            Quota((("client-id", None), ("user", "x")), {"producer_byte_rate": 10.0}),
            Quota((("ip", "192.0.2.1"),), present=False),
        ),
        (User("x", password="p"),),
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, None), (False, "false"), (12, "12"), (0.5, "0.5"), ("x", "x"), (["compact", "delete"], "compact,delete")],
)
def test_values_of_yaml_are_texts(value: object, text: str | None) -> None:
    assert config_text(value, "topic t: k") == text


def test_a_value_that_is_none_is_named() -> None:
    with pytest.raises(DeclarationError, match=r"^topic t: k is \{\}: write a text, a number, true, false"):
        wanted({**NOTHING, "topics": [filled(kafka_resources.TOPIC, name="t", configs={"k": {}})]})
    values = {"producer_byte_rate": "1M"}
    with pytest.raises(DeclarationError, match=r"^quota user x: producer_byte_rate is '1M': write a number"):
        wanted({**NOTHING, "quotas": [filled(kafka_resources.QUOTA, user="x", values=values)]})


def test_the_words_are_those_that_the_cluster_knows() -> None:
    assert kafka_resources.ACL["operations"]["choices"] == list(kafka_admin.OPERATION_CODES)
    assert kafka_resources.ACL["resource_type"]["choices"] == list(kafka_admin.RESOURCES) == list(kafka_plan.OPERATIONS)
    assert {"all"}.union(*kafka_plan.OPERATIONS.values()) == set(kafka_admin.OPERATION_CODES)


def test_the_documentation_has_the_arguments() -> None:
    options = yaml.safe_load(kafka_resources.DOCUMENTATION)["options"]
    for name, spec in (("topics", "TOPIC"), ("acls", "ACL"), ("quotas", "QUOTA"), ("users", "USER")):
        documented = options[name]["suboptions"]
        arguments = getattr(kafka_resources, spec)
        assert list(documented) == list(arguments)
        for option, argument in arguments.items():
            told = {key: value for key, value in documented[option].items() if key != "description"}
            assert told == {key: value for key, value in argument.items() if key != "no_log"}, option
