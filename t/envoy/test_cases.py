"""Every case of cases/, on Envoy and on nginx: no difference but those that are listed."""

import os

import cases
import expected
import judge
import pytest
import session

CASES = {case["id"]: case for case in cases.all_cases()}


@pytest.fixture(scope="module")
def known():
    known = expected.Expected()
    yield known
    known.write()


@pytest.fixture(scope="module")
def results(request):
    """What came of the cases that this run has: all are run at once."""
    chosen = [item.callspec.params["case"] for item in request.session.items if item.module is request.module and hasattr(item, "callspec")]
    return session.run([CASES[case] for case in chosen])


@pytest.mark.parametrize("case", CASES)
def test_same_as_envoy(case, results, known):
    found, said = results
    verdicts = [known.verdict(f"{case}/{request.name}", judge.differences(envoy, nginx)) for request, envoy, nginx in found[case]]
    wrong = [verdict for verdict in verdicts if verdict]
    if wrong:
        pytest.fail("\n".join([*wrong, *(line for line in said if case in line)]), pytrace=False)


def test_every_listed_difference_is_one(request, known):
    """What no case shows any more must not stand in the documentation."""
    run = {item.callspec.params["case"] for item in request.session.items if item.module is request.module and hasattr(item, "callspec")}
    # A part shows only some of them, and a second Envoy none.
    if run != CASES.keys() or os.environ.get("AMESH_ENVOY_CONTROL"):
        return
    unused = {entry["what"] for entry in known.differences} - known.used
    assert not unused, "no case shows these differences: take them out of differences.yaml"
    requests = {f"{case}/{one.name}" for case in CASES for one in CASES[case]["requests"]}
    unknown = {one for one in known.unbuilt if not any(expected.matches(request, one) for request in requests)}
    assert not unknown, "unbuilt.yaml names requests that no case has"


def test_documentation_is_that_list():
    assert expected.document() == expected.DOCUMENT.read_text(), "run t/envoy/expected.py > docs/differences.md"
