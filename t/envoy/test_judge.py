"""The judge itself: what it must see, and what it must not take for a difference."""

import collections

import cases
import expected
import judge


def seen(**more):
    plain = {"status": 200, "complete": True, "body": "", "in time": True, "headers": {}, "tries": []}
    return {**plain, "tries": [{"endpoint": "a", "method": "GET", "path": "/", "body": "", "headers": {"x-a": ["1"]}}], **more}


def test_each_field_is_compared():
    assert judge.differences(seen(), seen()) == []
    assert judge.differences(seen(), seen(status=503)) == [("status", 200, 503)]
    assert judge.differences(seen(headers={"x": ["1", "2"]}), seen(headers={"x": ["2", "1"]})) == [("headers.x", ["1", "2"], ["2", "1"])]
    assert judge.differences(seen(log={"flags": "UF"}), seen()) == [("log.flags", "UF", None)]
    assert judge.differences(seen(), seen(tries=[])) == [("tries", ["a"], [])]
    other = seen(tries=[{**seen()["tries"][0], "headers": {}}])
    assert judge.differences(seen(), other) == [("try.headers.x-a", ["1"], None)]


def test_shares_differ_by_more_than_chance():
    shares = lambda **counts: {"shares": collections.Counter(counts)}
    assert judge.differences(shares(a=520, b=480), shares(a=480, b=520)) == []
    assert [field for field, *_ in judge.differences(shares(a=700, b=300), shares(a=500, b=500))] == ["shares.a", "shares.b"]
    assert [field for field, *_ in judge.differences(shares(a=1000), shares(b=1000))] == ["shares.a", "shares.b"]


def test_only_what_is_made_anew_each_time_is_masked():
    uuid = "7c25513b-0466-4558-a64c-12c6704f37ed"
    mask = lambda name, value, sent=(), scripted="": judge.normal([(name, value)], "127.64.0.1", sent, scripted)[name]
    assert mask("x-request-id", uuid) == ["(uuid)"]
    assert mask("x-request-id", uuid, sent=[("x-request-id", uuid)]) == [uuid]
    assert mask("date", "now") == ["(volatile)"]
    assert mask("date", "then", scripted="200 date:then") == ["then"]
    assert mask("x-local", "127.64.0.1:80") == ["(listener):80"]


def test_a_star_is_anything_unless_it_is_escaped():
    assert expected.matches("http/a [b]/GET /", "http/*/GET /")
    assert not expected.matches("http/a/GET /x", "http/*/GET \\*")
    assert expected.matches("http/a/GET *", "http/*/GET \\*")
    assert not expected.matches("http/a", "https*")


def test_a_listed_request_must_differ():
    known = expected.Expected()
    known.differences, known.unbuilt, known.change = [{"what": "w", "why": "y", "fields": ["body"]}], {"f/c/r", "f/d/*"}, ""
    assert known.verdict("f/x/r", []) is None
    assert "Envoy 1, nginx 2" in known.verdict("f/x/r", [("status", 1, 2)])
    assert known.verdict("f/x/r", [("body", 1, 2)]) is None and known.used == {"w"}
    assert known.verdict("f/c/r", [("status", 1, 2)]) is None
    assert "take it off" in known.verdict("f/c/r", [])
    assert known.verdict("f/d/r", []) is None


def test_requests_are_sent_as_written():
    (one,) = cases.requests({"path": "/x", "method": "POST", "body": "hello", "headers": [["X-A", 1], ["x-a", 2]]})
    assert one.bytes("7") == b"POST /x HTTP/1.1\r\nhost: mesh.test\r\nx-test-id: 7\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 5\r\n\r\nhello"
    assert [r.path for r in cases.requests({"path": "/{n}", "repeat": 2})] == ["/1", "/2"]
