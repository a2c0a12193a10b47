"""Random route tables, and random requests near them (hypothesis).

Texts are few, so that routes overlap and requests hit. What no request can be answered the same by chance (weights, fractions)
is all or nothing here; what is known to differ is left to the cases.
"""

import dataclasses

import cases
from hypothesis import strategies as st

SEGMENTS = ("a", "b", "api", "v1", "API", "a.b", "x-y", "12", "%41")
REGEXES = ("/[a-z]+", "/api/.*", "/(a|b)/[0-9]+", ".*", "/v[0-9]+/.*", "(?i)/api", "/a\\.b", "/[^/]+/?", "^/a.*$")
REWRITES = (("/api/(.*)", "/new/\\1"), ("a", "X"), ("^/([^/]+)/(.*)$", "/\\2/\\1"), (".*", "/all"), ("/+", "/-"), ("b$", "\\0\\0"))
DOMAINS = ("a.test", "b.test", "A.b.test", "*.test", "*.b.test", "*-x.test", "a.*", "a.b.*", "a.test:80", "[::1]", "*")
HOSTS = ("a.test", "b.test", "a.b.test", "A.B.TEST", "x.b.test", "y-x.test", "a.other", "a.b.c", "a.test:80", "a.test:81", "[::1]", "[::1]:80", "test", ".test")
HEADERS = ("x-a", "x-b", "x-c", "cookie", "content-type", "accept-language")
VALUES = ("1", "2", "one", "One", "a b", "10", "-3", "application/grpc", "a=1; b=2")
QUERIES = ("q", "v")
CLUSTERS = ("a", "b", "c")
METHODS = ("GET", "GET", "GET", "POST", "PUT", "DELETE")

segments = st.lists(st.sampled_from(SEGMENTS), max_size=3)
paths = st.builds(lambda parts, end: "/" + "/".join(parts) + (end if parts else ""), segments, st.sampled_from(("", "", "/")))
values = st.sampled_from(VALUES)


def some(strategy):
    """The fields of this dictionary, or none."""
    return st.one_of(st.just({}), strategy)


def one_of_fields(**fields):
    return st.one_of([st.fixed_dictionaries({name: strategy}) for name, strategy in fields.items()])


def joined(*parts):
    return st.tuples(*parts).map(lambda all_of: {key: value for part in all_of for key, value in part.items()})


def regex(pattern):
    return {"regex": pattern}


strings = joined(
    one_of_fields(exact=values, prefix=values, suffix=values, contains=values),
    some(st.just({"ignore_case": True})),
) | one_of_fields(safe_regex=st.sampled_from(("[0-9]+", "o.*", "(?i)ONE", ".*b.*")).map(regex))

header_matchers = joined(
    st.fixed_dictionaries({"name": st.sampled_from((*HEADERS, ":method", ":path", ":authority"))}),
    one_of_fields(
        string_match=strings,
        present_match=st.booleans(),
        range_match=st.sampled_from(({"start": 1, "end": 10}, {"start": -5, "end": 2})),
    ),
    some(st.just({"invert_match": True})),
    some(st.just({"treat_missing_header_as_empty": True})),
)
query_matchers = joined(
    st.fixed_dictionaries({"name": st.sampled_from(QUERIES)}),
    one_of_fields(string_match=strings, present_match=st.booleans()),
)
matches = joined(
    one_of_fields(prefix=paths, path=paths, path_separated_prefix=paths.map(lambda path: path.rstrip("/") or "/a"), safe_regex=st.sampled_from(REGEXES).map(regex)),
    some(st.fixed_dictionaries({"headers": st.lists(header_matchers, min_size=1, max_size=2)})),
    some(st.fixed_dictionaries({"query_parameters": st.lists(query_matchers, min_size=1, max_size=2)})),
    some(st.just({"runtime_fraction": {"default_value": {"numerator": 0}}})),
    some(st.just({"grpc": {}})),
)


@st.composite
def cased(draw):
    """A match, without regard to case where that has a meaning."""
    match = draw(matches)
    if "safe_regex" not in match and draw(st.booleans()):
        match["case_sensitive"] = False
    return match


FORMATS = ("1", "new", "%REQ(x-a)%", "%REQ(x-c?x-b):2%", "%ROUTE_NAME%", "100%%", "%REQ(:method)% %PROTOCOL%", "%REQ(:authority)%", "%UPSTREAM_CLUSTER%")
ACTIONS = ("APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS")
EDITED = ("x-a", "x-b", "x-new")
additions = st.lists(
    st.builds(
        lambda name, value, action: {"header": {"key": name, "value": value}, "append_action": action},
        st.sampled_from(EDITED),
        st.sampled_from(FORMATS),
        st.sampled_from(ACTIONS),
    ),
    min_size=1,
    max_size=3,
)
removals = st.lists(st.sampled_from(EDITED), min_size=1, max_size=2)
edits = joined(
    some(st.fixed_dictionaries({"request_headers_to_add": additions})),
    some(st.fixed_dictionaries({"response_headers_to_add": additions})),
    some(st.fixed_dictionaries({"request_headers_to_remove": removals})),
    some(st.fixed_dictionaries({"response_headers_to_remove": removals})),
)
rewrites = st.sampled_from(REWRITES).map(lambda both: {"pattern": regex(both[0]), "substitution": both[1]})
hosts = st.sampled_from(("new.test", "new.test:81"))
forwards = joined(
    one_of_fields(
        cluster=st.sampled_from((*CLUSTERS, *CLUSTERS, "nobody", "empty", "down")),
        cluster_header=st.sampled_from(("x-a", "x-cluster")),
        weighted_clusters=joined(st.fixed_dictionaries({"name": st.sampled_from(CLUSTERS), "weight": st.just(1)}), edits, some(one_of_fields(host_rewrite_literal=hosts))).map(
            lambda arm: {"clusters": [{"name": "c", "weight": 0}, arm]}
        ),
    ),
    some(one_of_fields(prefix_rewrite=paths, regex_rewrite=rewrites)),
    some(one_of_fields(host_rewrite_literal=hosts, host_rewrite_header=st.just("x-a"), host_rewrite_path_regex=rewrites, auto_host_rewrite=st.just(True))),
    some(st.just({"append_x_forwarded_host": True})),
    some(one_of_fields(cluster_not_found_response_code=st.sampled_from(("NOT_FOUND", "INTERNAL_SERVER_ERROR")))),
)
redirects = joined(
    some(one_of_fields(https_redirect=st.just(True), scheme_redirect=st.sampled_from(("https", "http", "ftp")))),
    some(one_of_fields(host_redirect=hosts)),
    some(one_of_fields(port_redirect=st.sampled_from((80, 443, 8443)))),
    some(one_of_fields(path_redirect=paths | paths.map(lambda path: path + "?own=1"), prefix_rewrite=paths, regex_rewrite=rewrites)),
    some(st.just({"strip_query": True})),
    some(one_of_fields(response_code=st.sampled_from(("FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT")))),
)
directs = st.just({"status": 204}) | joined(
    st.fixed_dictionaries({"status": st.sampled_from((200, 403, 404, 418, 503))}),
    some(st.just({"body": {"inline_string": "said here\n"}})),
)
actions = one_of_fields(route=forwards) | one_of_fields(route=forwards) | one_of_fields(redirect=redirects, direct_response=directs)


@st.composite
def tables(draw):
    """A route table that both must take: domains are there once, names of routes are their places."""
    domains = draw(st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=6, unique=True))
    hosts = []
    while domains:
        taken = domains[: draw(st.integers(1, 3))]
        domains = domains[len(taken) :]
        routes = draw(st.lists(joined(cased().map(lambda match: {"match": match}), actions, edits), max_size=6))
        host = {"name": f"h{len(hosts)}", "domains": taken, **draw(edits)}
        host["routes"] = [{"name": f"h{len(hosts)}r{i}", **route} for i, route in enumerate(routes)]
        if draw(st.integers(0, 9)) == 9:
            host["require_tls"] = "ALL"
        if draw(st.booleans()):
            host["include_request_attempt_count"] = True
        hosts.append(host)
    flags = draw(st.sampled_from(({}, {}, {"ignore_port_in_host_matching": True}, {"most_specific_header_mutations_wins": True})))
    return {"virtual_hosts": hosts, **flags, **draw(edits)}


@st.composite
def requests(draw, table):
    """A request near a route of the table."""
    host = draw(st.sampled_from(table["virtual_hosts"]))
    route = draw(st.sampled_from(host["routes"])) if host["routes"] else {"match": {"prefix": "/"}}
    match = route["match"]
    known = match.get("prefix") or match.get("path") or match.get("path_separated_prefix")
    path = known if known and draw(st.integers(0, 5)) else draw(paths)
    path = draw(st.sampled_from((path, path, path + "/a", path + "x", path.swapcase(), path + "/")))
    wanted = [(one["name"], near(one)) for one in match.get("headers", []) if not one["name"].startswith(":")]
    more = draw(st.lists(st.tuples(st.sampled_from(HEADERS), values), max_size=2))
    headers = [pair for pair in wanted if draw(st.integers(0, 3))] + more
    # Several of these are one to Envoy: see "Headers on several lines" in differences.yaml.
    headers = [pair for i, pair in enumerate(headers) if pair[0] != "content-type" or "content-type" not in dict(headers[:i])]
    queries = [f"{one['name']}={near(one)}" for one in match.get("query_parameters", []) if draw(st.integers(0, 3))]
    queries += draw(st.lists(st.sampled_from(("q", "q=1", "v=2", "v=one", "x=/a")), max_size=1))
    domain = draw(st.sampled_from(host["domains"]))
    name = domain if "*" not in domain and draw(st.booleans()) else draw(st.sampled_from(HOSTS))
    method = draw(st.sampled_from(METHODS))
    path = path.replace(" ", "") + ("?" + "&".join(queries).replace(" ", "%20") if queries else "")
    return cases.Request(
        name=f"{method} {name}{path} {headers}",
        method=method,
        path=path,
        host=name,
        headers=headers,
        body="a body" if method in ("POST", "PUT") else "",
        upstream=[draw(st.sampled_from(("200", "200 x-a:up x-b:1 x-b:2", "404", "503 x-new:up")))],
    )


def kept(request):
    """The request on the connection of the one before."""
    return dataclasses.replace(request, keep=True)


def near(matcher):
    """A value that a matcher takes, if it takes one like it."""
    string = matcher.get("string_match", {})
    plain = next((string[kind] for kind in ("exact", "prefix", "suffix", "contains") if kind in string), "7")
    return plain.swapcase() if string.get("ignore_case") else plain
