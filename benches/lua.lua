-- What a decision in Lua costs, and a balancer: run by benches/lua.
local amesh = require "resty.amesh"

local _M = {}

local WARM, ROUNDS, COUNT = 2000, 5, 20000

-- The median of rounds, in microseconds a call; and bytes that a call leaves to collect.
local function measure(f)
    for _ = 1, WARM do
        f()
    end
    local times = {}
    local garbage
    for round = 1, ROUNDS do
        collectgarbage()
        collectgarbage "stop"
        local bytes = collectgarbage "count"
        ngx.update_time()
        local start = os.clock()
        for _ = 1, COUNT do
            f()
        end
        times[round] = (os.clock() - start) / COUNT * 1e6
        garbage = (collectgarbage "count" - bytes) * 1024 / COUNT
        collectgarbage "restart"
    end
    table.sort(times)
    return times[math.ceil(ROUNDS / 2)], garbage
end

local lines = {}

local function say(what, f)
    local us, bytes = measure(f)
    table.insert(lines, string.format("%-44s %8.2f us %10.1f bytes", what, us, bytes))
end

-- `last` is the path of the last route of the table `web`.
function _M.run(last)
    local fresh = { table = "web", authority = "mesh.example.com", path = last }
    local into = { table = "web", authority = "mesh.example.com", path = last, into = {} }
    assert(amesh.decide(fresh).cluster == "last", "not the last route")
    say("decision", function() amesh.decide(fresh) end)
    say("decision into a table that is there", function() amesh.decide(into) end)
    local listener = { listener = "bench", authority = "mesh.example.com", path = last, into = {} }
    assert(amesh.decide(listener).cluster == "last", "not the last route")
    say("decision of a listener, into a table", function() amesh.decide(listener) end)
    say("decision on the request at hand, into a table", function() amesh.decide(_M.here) end)
    say("version", function() return amesh.version() end)
    say("a resource that is kept", function() return amesh.get("cluster", "last") end)
    local text = table.concat(lines, "\n")
    ngx.header.content_length = #text
    ngx.print(text)
end

_M.here = { table = "web", into = {} }

return _M
