-- What becomes of a request: decided by the module, told as a table.
local ffi = require "ffi"
local base = require "resty.core.base"
local native = require "resty.amesh.native"

local C = ffi.C
local new, ffi_string = ffi.new, ffi.string
local get_request = base.get_request
local reason, with_room, str = native.reason, native.with_room, native.str
local type, tonumber, tostring, lower, pairs, ipairs, error = type, tonumber, tostring, string.lower, pairs, ipairs, error
local subsystem = ngx.config.subsystem

local _M = {}

local decision = new "amesh_decision_t"
local asked = new "amesh_request_t"
local header_list = ffi.typeof "amesh_header_t[?]"

local OPS = { [C.AMESH_REMOVE] = "remove", [C.AMESH_SET] = "set", [C.AMESH_APPEND] = "append" }

local function edits(list, count)
    count = tonumber(count)
    if count == 0 then
        return nil
    end
    local all = {}
    for i = 0, count - 1 do
        local edit = list[i]
        local op = OPS[edit.op]
        all[i + 1] = {
            op = op,
            name = ffi_string(edit.name.data, edit.name.len),
            value = op ~= "remove" and ffi_string(edit.value.data, edit.value.len) or nil,
        }
    end
    return all
end

-- What the module has decided, as a table.
function _M.told(into)
    local d, t = decision, into or {}
    local status = d.status
    t.version = tonumber(d.version)
    t.listener = str(d.listener)
    t.virtual_host = str(d.virtual_host)
    t.route = str(d.route)
    t.virtual_cluster = str(d.virtual_cluster)
    t.cluster = str(d.cluster)
    t.endpoint = str(d.endpoint)
    t.address = str(d.address)
    t.port = d.port ~= 0 and d.port or nil
    t.http = d.http
    t.authority = str(d.authority)
    t.path = str(d.path)
    t.flags = str(d.flags)
    t.grpc = d.grpc ~= 0
    t.delay = tonumber(d.delay)
    t.request_headers = edits(d.request_headers, d.request_headers_count)
    t.response_headers = edits(d.response_headers, d.response_headers_count)
    if status == 0 then
        t.action = "forward"
        t.retries, t.retry_on = d.retries, str(d.retry_on)
        t.connect_timeout, t.timeout = tonumber(d.connect_timeout), tonumber(d.timeout)
        t.per_try_timeout, t.per_try_idle_timeout = tonumber(d.per_try_timeout), tonumber(d.per_try_idle_timeout)
        t.idle_timeout, t.max_stream_duration = tonumber(d.idle_timeout), tonumber(d.max_stream_duration)
        t.status, t.body, t.content_type, t.location, t.grpc_status = nil, nil, nil, nil, nil
    else
        t.location = str(d.location)
        t.action = t.location and status >= 300 and status < 400 and "redirect" or "respond"
        t.status, t.body, t.content_type = status, str(d.body) or "", str(d.content_type)
        t.grpc_status = d.grpc_status ~= 0xffffffff and d.grpc_status or nil
        t.retries, t.retry_on, t.connect_timeout, t.timeout, t.per_try_timeout = nil, nil, nil, nil, nil
        t.per_try_idle_timeout, t.idle_timeout, t.max_stream_duration = nil, nil, nil
    end
    return t
end

-- With one of these, or a path, it is not the request at hand that is asked about.
local OF_ANOTHER = { "method", "authority", "headers", "source", "server_name", "application_protocols", "tls", "http2" }
local KNOWN = { into = true, path = true, table = true, listener = true, destination = true, inbound = true }
for _, name in ipairs(OF_ANOTHER) do KNOWN[name] = true end

local function bad(name, value, wanted)
    error("option \"" .. name .. "\" is " .. wanted .. ", and not " .. (type(value) == "string" and "\"" .. value .. "\""
        or tostring(value)), 5)
end

-- Values that are used by the call, kept from being collected.
local kept

local function headers_of(headers)
    if type(headers) ~= "table" then
        bad("headers", headers, "a table of names and values")
    end
    local list, n = {}, 0
    for name, value in pairs(headers) do
        if type(name) ~= "string" then
            bad("headers", headers, "a table of names and values")
        end
        name = lower(name)
        if type(value) == "table" then
            for _, line in ipairs(value) do
                list[n + 1], list[n + 2] = name, tostring(line)
                n = n + 2
            end
        else
            list[n + 1], list[n + 2] = name, tostring(value)
            n = n + 2
        end
    end
    local lines = header_list(n / 2)
    for i = 0, n / 2 - 1 do
        local name, value = list[2 * i + 1], list[2 * i + 2]
        lines[i].name.data, lines[i].name.len = name, #name
        lines[i].value.data, lines[i].value.len = value, #value
    end
    kept = { list, lines }
    asked.headers, asked.headers_count = lines, n / 2
end

local function text(place, name, value)
    if value == nil then
        place.data, place.len = nil, 0
        return
    elseif type(value) ~= "string" then
        bad(name, value, "a text")
    end
    place.data, place.len = value, #value
end

local function flag(name, value)
    if value == nil or value == false then
        return 0
    elseif value ~= true then
        bad(name, value, "true or false")
    end
    return 1
end

-- Tables of options that were looked through: LuaJIT does not compile pairs(), so that is done once for each.
local known = setmetatable({}, { __mode = "k" })

local function check(opts)
    for name in pairs(opts) do
        if not KNOWN[name] then
            error("unknown option \"" .. tostring(name) .. "\"", 4)
        end
    end
    known[opts] = true
end

-- Fills `asked`; whether it is about another request than the one at hand.
local function ask(opts)
    if not known[opts] then
        check(opts)
    end
    -- Each by its name, so that it compiles.
    text(asked.method, "method", opts.method)
    text(asked.authority, "authority", opts.authority)
    text(asked.path, "path", opts.path)
    text(asked.table, "table", opts.table)
    text(asked.listener, "listener", opts.listener)
    text(asked.destination, "destination", opts.destination)
    text(asked.source, "source", opts.source)
    text(asked.server_name, "server_name", opts.server_name)
    text(asked.application_protocols, "application_protocols", opts.application_protocols)
    asked.tls = flag("tls", opts.tls)
    asked.inbound = flag("inbound", opts.inbound)
    asked.http2 = flag("http2", opts.http2)
    asked.headers, asked.headers_count = nil, 0
    if opts.headers ~= nil then
        headers_of(opts.headers)
    end
    if opts.table and opts.listener then
        error("options \"table\" and \"listener\" are not together", 3)
    end
    if opts.path then
        return true
    end
    for i = 1, #OF_ANOTHER do
        if opts[OF_ANOTHER[i]] ~= nil then
            error("with option \"" .. OF_ANOTHER[i] .. "\" another request is asked about: give its \"path\", too", 3)
        end
    end
    return false
end

local function decide(buffer, capacity, size, r, request)
    return C.amesh_decide(r, request, buffer, capacity, size, decision)
end

local function no_request(what)
    return nil, what .. " needs a request, and there is none in " .. ngx.get_phase()
        .. "*: give \"path\" and what else the request has"
end

-- The decision on the request at hand, or on the one that `opts` tells of. Changes and counts nothing.
function _M.decide(opts)
    local r, request
    if opts ~= nil then
        if type(opts) ~= "table" then
            error("the options of amesh.decide are a table", 2)
        end
        request = asked
        if not ask(opts) then
            r = get_request()
            if not (opts.table or opts.listener or opts.destination or opts.inbound ~= nil) then
                request = nil
            end
        end
    else
        r = get_request()
    end
    if not request or (r == nil and asked.path.len == 0) then
        if r == nil or subsystem ~= "http" then
            return no_request("amesh.decide without \"path\"")
        end
    end
    local rc = with_room(decide, r, request)
    kept = nil
    if rc == 0 then
        return _M.told(opts and opts.into)
    elseif rc == C.AMESH_NO_REQUEST then
        return no_request("amesh.decide without \"path\"")
    elseif rc == C.AMESH_NOT_FOUND then
        return nil, opts.table and "no route table \"" .. opts.table .. "\"" or "no listener \"" .. opts.listener .. "\""
    elseif rc == C.AMESH_BAD_ARGUMENT then
        return nil, "\"destination\" and \"source\" are \"ip:port\", and texts are UTF-8"
    end
    return nil, reason(rc)
end

local function route(buffer, capacity, size, r, inbound)
    return C.amesh_route(r, inbound, buffer, capacity, size, decision)
end

local ROUTED = { rewrite = true, access = true, server_rewrite = true }

-- Decides the request at hand for good, as a server with "amesh outbound;" does.
function _M.route(opts)
    local phase = ngx.get_phase()
    if not ROUTED[phase] then
        return nil, "amesh.route decides in rewrite_by_lua* and access_by_lua*, and not in " .. phase .. "*"
    end
    if ngx.req.http_version() < 1 then
        -- As the module's own servers do: it has no headers to decide by.
        return ngx.exit(505)
    end
    -- As the module's own servers do for their first seconds.
    for _ = 1, 100 do
        if C.amesh_zone_ready() ~= C.AMESH_NOT_FOUND then
            break
        end
        ngx.sleep(0.05)
    end
    local rc = with_room(route, get_request(), opts and opts.inbound and 1 or 0)
    if rc == 0 then
        return _M.told(opts and opts.into)
    elseif rc == C.AMESH_BAD_ARGUMENT then
        return nil, "this server has an \"amesh\" of its own, or this is a subrequest: what the module decides is told by amesh.decide"
    end
    return nil, reason(rc)
end

return _M
