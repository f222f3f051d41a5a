#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the page of each role and plugin, and the index of docs/, from what the code states.

A role's page comes from its `meta/` and `tasks/`, a plugin's page from its DOCUMENTATION, EXAMPLES and RETURN. What
people write by hand about a role stands in `docs/roles/<role>.md` and becomes a part of its page. Which runbooks and
decisions belong to which role or plugin is said in `docs/templates/links.yml`.

Usage: docs/generate.py [--check]

With `--check` nothing is written, and each page that is not current is named.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import jinja2
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.groundplane.onprem.plugins.module_utils import contract

COLLECTION = "groundplane.onprem"
KINDS = {"modules": "module", "lookup": "lookup", "filter": "filter"}
# A default that is longer, in characters, stands below the table and not in it.
INLINE = 60
# https://docs.ansible.com/ansible-core/2.19/dev_guide/ansible_markup.html: only the semantic ones can hold a closing
# parenthesis, escaped by a backslash.
MARKUP = re.compile(
    r"\b(?:(?P<semantic>[EOPV]|RV)\((?P<value>(?:[^\\)]|\\.)+)\)|(?P<classic>[BCILMRU])\((?P<text>[^)]+)\))"
    r"|\bHORIZONTALLINE\b"
)
OF_PLUGIN = re.compile(r"(?P<plugin>\w+\.\w+\.\w+)#\w+:(?P<name>.+)", re.DOTALL)


class PageError(Exception):
    """A page cannot be made; the text says which source is wrong."""


# ---------------------------------------------------------------------------------------------------------- Markdown


def code(text: str) -> str:
    """A code span, also of text with backticks in it."""
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def escape(text: str) -> str:
    """Plain text in which Markdown and HTML find nothing to interpret."""
    return re.sub(r"([*<])", r"\\\1", text)


def plugin_link(name: str, plugins: str) -> str:
    """A link to the page of a plugin of this collection; the bare name of any other."""
    collection, _, short = name.rpartition(".")
    return f"[{code(short)}]({plugins}{short}.md)" if collection == COLLECTION else code(name)


def _semantic(kind: str, value: str, plugins: str) -> str:
    """What O(), V(), RV(), E() and P() become."""
    value = re.sub(r"\\(.)", r"\1", value)
    if kind == "P":
        return plugin_link(value.partition("#")[0], plugins)
    if kind in {"O", "RV"} and (of := OF_PLUGIN.fullmatch(value)):
        return f"{code(of['name'])} of {plugin_link(of['plugin'], plugins)}"
    return code(value)


def _classic(kind: str, text: str, plugins: str) -> str:
    """What B(), C(), I(), L(), M(), R() and U() become."""
    if "(" in text:
        raise PageError(f"{kind}({text}) ends at its first closing parenthesis: say V() with a backslash before it")
    label, _, target = (part.strip() for part in text.partition(","))
    return {
        "B": f"**{escape(text)}**",
        "C": code(text),
        "I": f"*{escape(text)}*",
        "L": f"[{escape(label)}]({target})",
        "M": plugin_link(text, plugins),
        "R": escape(label),
        "U": f"<{text}>",
    }[kind]


def markdown(text: str, plugins: str) -> str:
    """Ansible's markup as Markdown.

    Args:
        text: with C(), O() and their like.
        plugins: how the page leads to the directory of plugin pages; empty within it.
    """
    parts: list[str] = []
    end = 0
    for match in MARKUP.finditer(text):
        parts.append(escape(text[end : match.start()]))
        if match["semantic"]:
            parts.append(_semantic(match["semantic"], match["value"], plugins))
        else:
            parts.append(_classic(match["classic"], match["text"], plugins) if match["classic"] else "\n\n---\n\n")
        end = match.end()
    return "".join(parts) + escape(text[end:])


def paragraphs(description: object) -> list[str]:
    """The paragraphs of a description, which is a text or a list of them."""
    texts = description if isinstance(description, list) else [description or ""]
    return [part.strip() for text in texts for part in re.split(r"\n\s*\n", str(text)) if part.strip()]


def cell(text: str) -> str:
    """Text that may have paragraphs, as one cell of a table."""
    return re.sub(r"\s*\n\s*", " ", re.sub(r"\n\s*\n", "<br>", text)).replace("|", r"\|")


def literal(value: object) -> str:
    """A value as one would write it in an inventory, on one line where that can be read."""
    if not isinstance(value, str):
        flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize)
        return flow.removesuffix("...\n").strip()
    if "{{" in value:
        return value
    try:
        same = yaml.safe_load(value) == value
    except yaml.YAMLError:
        same = False
    return value if same else json.dumps(value, ensure_ascii=False)


# ----------------------------------------------------------------------------------------------------------- options


def type_of(option: dict[str, Any]) -> str:
    """The type in words."""
    kind = str(option.get("type", "str"))
    return f"{kind} of {option['elements']}" if "elements" in option else kind


def options(declared: dict[str, Any] | None, nested: str = "options") -> list[dict[str, Any]]:
    """Options as rows of a table, those of a dictionary right behind it with a path for a name.

    Args:
        declared: name to option, or name to returned value.
        nested: the key under which further ones stand: `options`, `suboptions` or `contains`.
    """
    rows: list[dict[str, Any]] = []
    for name, option in (declared or {}).items():
        rows.append({**option, "name": name, "type": type_of(option), "description": paragraphs(option["description"])})
        inner = f"{name}[]" if option.get("type") == "list" else name
        rows += [{**row, "name": f"{inner}.{row['name']}"} for row in options(option.get(nested), nested)]
    return rows


def is_long(value: object) -> bool:
    """Whether a default needs a block of its own."""
    text = literal(value)
    return len(text) > INLINE or "\n" in text


def block(value: object) -> str:
    """A long default as YAML, or as the expression that it is."""
    if isinstance(value, str):
        return "\n".join(line.strip() for line in value.strip().splitlines())
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=sys.maxsize).strip()


# ------------------------------------------------------------------------------------------------------------- roles


def tasks(path: Path) -> list[dict[str, Any]]:
    """What is true after a task file: a name for each task, and below it the tasks of its block or included file."""
    return [_task(task, path.parent) for task in yaml.safe_load(path.read_text())]


def _task(task: dict[str, Any], directory: Path) -> dict[str, Any]:
    """One task; an included file whose name depends on a variable is not followed, and a rescue is no outcome."""
    inner = [_task(each, directory) for each in (*task.get("block", []), *task.get("always", []))]
    for verb in ("include_tasks", "import_tasks"):
        included = task.get(f"ansible.builtin.{verb}")
        name = included.get("file") if isinstance(included, dict) else included
        if name and "{{" not in name:
            inner += tasks(directory / name)
    return {"name": task["name"], "tasks": inner}


def who(groups: list[str], networks: list[str]) -> str:
    """Who may connect, in words."""
    words = {"all": "every host of the site", "any": "anyone"}
    found = [words.get(group, f"group {code(group)}") for group in groups]
    return ", ".join([*found, *(f"network {code(network)}" for network in networks)]) or "nobody"


def service(path: Path) -> dict[str, Any] | None:
    """A role's contract with all its defaults; None where it runs no service."""
    return contract.load(path).as_mapping() if path.exists() else None


def entry_points(role: Path) -> list[dict[str, Any]]:
    """The ways to call a role, `main` first."""
    found: list[dict[str, Any]] = []
    for name, spec in yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"].items():
        declared = spec.get("options") or {}
        same = next((entry["name"] for entry in found if declared and entry["declared"] == declared), None)
        found.append(
            {
                "name": name,
                "title": spec["short_description"],
                "description": paragraphs(spec.get("description")),
                "tasks": tasks(role / "tasks" / f"{name}.yml"),
                "declared": declared,
                "options": [] if same else options(declared),
                "same": same,
            }
        )
    return sorted(found, key=lambda entry: entry["name"] != "main")


# ----------------------------------------------------------------------------------------------------------- plugins


def constants(body: list[ast.stmt]) -> dict[str, Any]:
    """The names that are set to a literal, and what to."""
    return {
        target.id: node.value.value
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def documentation(path: Path) -> dict[str, Any]:
    """DOCUMENTATION, EXAMPLES and RETURN of a plugin, from its constants or from the file that stands for them."""
    content = yaml.safe_load(path.read_text()) if path.suffix == ".yml" else constants(ast.parse(path.read_text()).body)
    if "DOCUMENTATION" not in content:
        return {}
    parsed = {key: content.get(key) or {} for key in ("DOCUMENTATION", "RETURN")}
    parsed = {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in parsed.items()}
    return {**parsed["DOCUMENTATION"], "returns": parsed["RETURN"], "examples": (content.get("EXAMPLES") or "").strip()}


def shared_options(directory: Path, names: list[str]) -> dict[str, Any]:
    """The options of documentation fragments of the collection.

    Args:
        directory: of its plugins.
        names: of the fragments, in full.

    Raises:
        PageError: a fragment of another collection, or one that is not there.
    """
    options: dict[str, Any] = {}
    for name in names:
        path = directory / "doc_fragments" / f"{name.removeprefix(f'{COLLECTION}.')}.py"
        if not path.exists():
            raise PageError(f"documentation fragment {name}: there is no {path.name} among the collection's own")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name == "ModuleDocFragment":
                options |= yaml.safe_load(constants(node.body)["DOCUMENTATION"]).get("options", {})
    return options


def plugins(directory: Path) -> list[dict[str, Any]]:
    """All documented plugins of a collection; an action has its page with the module of its name.

    Raises:
        PageError: two plugins of a name, an action without a module, or a fragment that is not there.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder, kind in KINDS.items():
        for path in sorted([*(directory / folder).glob("*.py"), *(directory / folder).glob("*.yml")]):
            plugin = documentation(path)
            if not plugin:
                continue
            if fragments := plugin.pop("extends_documentation_fragment", []):
                plugin["options"] = plugin.get("options", {}) | shared_options(directory, fragments)
            if path.stem in found:
                raise PageError(f"{kind} {path.stem}: another plugin has a page of this name")
            has_action = kind == "module" and (directory / "action" / path.name).exists()
            found[path.stem] = {**plugin, "name": path.stem, "kind": kind, "has_action": has_action}
    actions = {path.stem for path in (directory / "action").glob("*.py")}
    if alone := sorted(actions - {name for name, plugin in found.items() if plugin["has_action"]}):
        raise PageError(f"action {alone[0]}: no module of this name documents it")
    return list(found.values())


# ------------------------------------------------------------------------------------------------------------- pages


def outline(path: Path) -> dict[str, Any]:
    """Title and sections of a page that somebody wrote."""
    outside = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^(#{1,2}) (.+)$", outside, flags=re.MULTILINE)
    return {
        "title": next(text for level, text in headings if level == "#"),
        "sections": [text for level, text in headings if level == "##"],
    }


def further(links: dict[str, dict[str, list[str]]], subject: str, name: str) -> list[dict[str, str]]:
    """The hand-written pages about a role or a plugin.

    Args:
        links: page below docs/ to `roles` and `plugins` that it is about.
        subject: `roles` or `plugins`.
        name: of the role or plugin.
    """
    return [
        {"page": page, "title": outline(ROOT / "docs" / page)["title"]}
        for page, subjects in links.items()
        if name in subjects.get(subject, [])
    ]


def environment() -> jinja2.Environment:
    """The templates with what they call."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "docs/templates"),
        autoescape=False,  # noqa: S701 - Markdown, from this repository alone
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"code": code, "escape": escape, "cell": cell, "literal": literal, "block": block}
    made.tests |= {"long": is_long, "expression": lambda value: isinstance(value, str) and "{{" in value}
    made.globals |= {"who": who, "options": options, "paragraphs": paragraphs}
    return made


def page(templates: jinja2.Environment, template: str, plugin_pages: str, **values: Any) -> str:
    """One page; more than one empty line in a row is one."""
    made = templates.overlay()
    made.filters = {**templates.filters, "md": lambda text: markdown(str(text), plugin_pages)}
    text = made.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def pages() -> dict[str, str]:
    """All generated pages: path in the repository to content.

    Raises:
        PageError: links.yml names what is not there, or plugins are in each other's way.
    """
    links = yaml.safe_load((ROOT / "docs/templates/links.yml").read_text())
    roles = [path.parent.parent for path in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml"))]
    documented = plugins(ROOT / "plugins")
    known = {"roles": {role.name for role in roles}, "plugins": {plugin["name"] for plugin in documented}}
    for name, subjects in links.items():
        if not (ROOT / "docs" / name).exists():
            raise PageError(f"docs/templates/links.yml: there is no docs/{name}")
        for subject, names in subjects.items():
            if unknown := sorted(set(names) - known[subject]):
                raise PageError(f"docs/templates/links.yml: {name}: {unknown[0]} is not one of the {subject}")
    templates = environment()
    entries = {role.name: entry_points(role) for role in roles}
    made: dict[str, str] = {}
    for role in roles:
        notes = ROOT / "docs/roles" / f"{role.name}.md"
        made[f"roles/{role.name}/README.md"] = page(
            templates,
            "role.md.j2",
            "../../docs/plugins/",
            role=role.name,
            entries=entries[role.name],
            contract=service(role / "meta/service.yml"),
            notes=notes.read_text() if notes.exists() else "",
            scenario="default" if role.name == "lab_site" else role.name,
            further=further(links, "roles", role.name),
        )
    for plugin in documented:
        made[f"docs/plugins/{plugin['name']}.md"] = page(
            templates, "plugin.md.j2", "", plugin=plugin, further=further(links, "plugins", plugin["name"])
        )
    written = {
        directory: [
            {**outline(path), "page": path.relative_to(ROOT / "docs").as_posix()}
            for path in sorted((ROOT / "docs" / directory).glob("*.md"))
            if path != ROOT / "docs/README.md"
        ]
        for directory in (".", "runbooks", "decisions")
    }
    made["docs/README.md"] = page(
        templates,
        "index.md.j2",
        "plugins/",
        written=written,
        roles=[(name, called[0]["title"]) for name, called in entries.items()],
        plugins=documented,
        kinds=KINDS.values(),
    )
    return made


def main(arguments: list[str]) -> int:
    """Write the pages, or name those that are not current."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: docs/generate.py [--check]\n")
        return 2
    try:
        wanted = pages()
    except (PageError, contract.ContractError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    present = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("roles/*/README.md")}
    present |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/plugins/*.md")}
    obsolete = sorted(present - set(wanted))
    stale = [
        path
        for path, content in wanted.items()
        if not (ROOT / path).exists() or (ROOT / path).read_text(encoding="utf-8") != content
    ]
    if arguments:
        sys.stderr.writelines(f"{path} is not current: run make docs\n" for path in stale)
        sys.stderr.writelines(f"{path} is about nothing that exists: run make docs\n" for path in obsolete)
        return 1 if stale or obsolete else 0
    for path in stale:
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(wanted[path], encoding="utf-8")
    for path in obsolete:
        (ROOT / path).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
