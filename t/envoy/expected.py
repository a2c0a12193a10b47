"""The differences that are known: those that stay, with their reason, and those of what is not built yet.

differences.yaml: a list of {what, why, fields, requests}: `fields` and `requests` are patterns, `requests` all where left out;
{what, until, fields}: a field that differs in every request until a feature is built.
unbuilt.yaml: {file: [requests]}: those that differ as long as something is not built. One that is equal fails until it is taken
off: AMESH_ENVOY_UNBUILT=take takes such requests off, AMESH_ENVOY_UNBUILT=put also puts those there that differ. Where chance makes
some equal there is a pattern instead, which nothing takes off but you.
docs/differences.md is made of the first: expected.py > docs/differences.md
"""

import os
import pathlib
import re
import textwrap

import yaml

HERE = pathlib.Path(__file__).resolve().parent
DOCUMENT = HERE.parent.parent / "docs/differences.md"
HEAD = """
# Where a request sees that it is not Envoy

Requests are sent to Envoy 1.40 and to nginx with this module under one configuration, and what comes of them is compared
(`make test-envoy`). All is equal but for what stands here. (Made of `t/envoy/differences.yaml`.)
"""


def read(name):
    return yaml.safe_load((HERE / name).read_text())


class Expected:
    def __init__(self):
        self.differences = read("differences.yaml") or []
        self.unbuilt = {request for requests in (read("unbuilt.yaml") or {}).values() for request in requests}
        self.change = os.environ.get("AMESH_ENVOY_UNBUILT", "")
        # Entries of differences.yaml that explained something.
        self.used = set()

    def explained(self, request, field):
        """Whether a difference of a request (file/case/request) in a field is one that is listed."""
        for entry in self.differences:
            here = any(matches(request, pattern) for pattern in entry.get("requests", ["*"]))
            if here and any(matches(field, pattern) for pattern in entry["fields"]):
                self.used.add(entry["what"])
                return True
        return False

    def verdict(self, request, differences):
        """What is wrong with a request of which this differs, None: nothing."""
        left = [d for d in differences if not self.explained(request, d[0])]
        if bool(left) == (request in self.unbuilt) or any(matches(request, pattern) for pattern in self.unbuilt if "*" in pattern):
            return None
        if not left and self.change:
            self.unbuilt.remove(request)
        elif not left:
            return f"{request}\n    equals Envoy's: take it off unbuilt.yaml"
        elif self.change == "put":
            self.unbuilt.add(request)
        else:
            return "\n".join([request, *(f"    {field}: Envoy {a!r}, nginx {b!r}" for field, a, b in left)])
        return None

    def write(self):
        """unbuilt.yaml as it has become."""
        files = {}
        for request in sorted(self.unbuilt):
            files.setdefault(request.split("/")[0], []).append(request)
        if self.change:
            (HERE / "unbuilt.yaml").write_text(yaml.safe_dump(files, allow_unicode=True, width=1000) if files else "")


def matches(text, pattern):
    """`*` is anything; `\\*` is that character."""
    parts = re.split(r"(?<!\\)\*", pattern)
    return re.fullmatch(".*".join(re.escape(part.replace("\\*", "*")) for part in parts), text, re.S) is not None


def document():
    parts = [HEAD.strip()]
    for entry in read("differences.yaml"):
        if "until" in entry:
            continue
        parts.append(textwrap.fill(f"* **{entry['what']}** {' '.join(entry['why'].split())}", 120, subsequent_indent="  ", break_on_hyphens=False))
    return parts[0] + "\n\n" + "\n".join(parts[1:]) + "\n"


if __name__ == "__main__":
    print(document(), end="")
