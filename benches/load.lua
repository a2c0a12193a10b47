-- What wrk asks for: load.lua one | hosts N | last N | regex N
--   one      GET / of v0.mesh.test
--   hosts N  GET / of v0.mesh.test ... v(N-1).mesh.test, spread
--   last N   GET /rN-1/ of v0.mesh.test
--   regex N  GET /api/v2/item-N-1/some/more of v0.mesh.test
-- Prints "p99 US" and "requests R errors E" at the end; E counts everything but 200.

local requests = {}

function init(args)
   local work, n = args[1], tonumber(args[2] or "1")
   if work == "hosts" then
      for i = 0, n - 1 do
         requests[#requests + 1] = wrk.format("GET", "/", { Host = "v" .. i .. ".mesh.test" })
      end
   elseif work == "last" then
      requests[1] = wrk.format("GET", "/r" .. (n - 1) .. "/", { Host = "v0.mesh.test" })
   elseif work == "regex" then
      requests[1] = wrk.format("GET", "/api/v2/item-" .. (n - 1) .. "/some/more", { Host = "v0.mesh.test" })
   else
      requests[1] = wrk.format("GET", "/", { Host = "v0.mesh.test" })
   end
end

local at = 0

function request()
   -- A step that shares no factor with the count visits every host, and no neighbours in turn.
   at = (at + 7919) % #requests
   return requests[at + 1]
end

function done(summary, latency)
   local e = summary.errors
   -- Microseconds.
   print("p99 " .. latency:percentile(99))
   print("requests " .. summary.requests .. " errors " .. e.connect + e.read + e.write + e.status + e.timeout)
end
