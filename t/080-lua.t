# resty.amesh on nginx's Lua module: what the mesh has.
use lib 't/lib';
use AmeshTest;
use Test::Nginx::Socket 'no_plan';

no_shuffle();
use_amesh(lua => 1);
run_tests();

__DATA__

=== TEST 1: names and versions
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        for _, kind in ipairs { "listener", "route_table", "cluster", "endpoints" } do
            local names, versions = amesh.names(kind)
            ngx.say(kind, ": ", table.concat(names, " "))
            for i, name in ipairs(names) do
                assert(versions[i] == amesh.version_of(kind, name))
                assert(versions[i] > 0 and versions[i] <= amesh.version())
            end
        end
        ngx.say(amesh.ready(), " ", amesh.stats().slots)
    } }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body
listener: web
route_table: web-routes
cluster: both down empty flaky one two
endpoints: both down empty flaky one two
true 16


=== TEST 2: what is not there, and what makes no sense
--- config
    location / { content_by_lua_block {
        local amesh = require "resty.amesh"
        ngx.say(amesh.version_of("cluster", "none"))
        ngx.say(pcall(amesh.names, "clusters"))
    } }
--- routes
- match: {prefix: /}
  route: {cluster: one}
--- request
GET /
--- response_body_like
^nilnot found
false.*no such kind of resource: "clusters", it is "listener", "route_table", "cluster" or "endpoints"
