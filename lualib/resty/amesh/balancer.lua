-- balancer_by_lua: the endpoint of each try, with tries, pauses and time-outs by the mesh's policy.
local ffi = require "ffi"
local base = require "resty.core.base"
local native = require "resty.amesh.native"

local C = ffi.C
local ffi_string = ffi.string
local get_request = base.get_request
local reason = native.reason

local _M = {}

local peer = ffi.new "amesh_peer_t"

-- What nginx's balancers return when there is nobody to ask (NGX_BUSY).
local BUSY = -3

local WHY = {
    [C.AMESH_NO_ROUTE] = "the request has no route: decide it by amesh.route(), or name a cluster",
    [C.AMESH_NO_CLUSTER] = "no such cluster",
    [C.AMESH_NO_HEALTHY_UPSTREAM] = "no healthy upstream",
    [C.AMESH_OVERFLOW] = "overflow",
    [C.AMESH_REFUSED] = "the cluster wants what is not supported: see the error log",
}

local function pick(cluster)
    if ngx.get_phase() ~= "balancer" then
        return nil, "an endpoint is picked in balancer_by_lua*, and not in " .. ngx.get_phase() .. "*"
    end
    cluster = cluster or ""
    local rc = C.amesh_balancer_pick(get_request(), cluster, #cluster, peer)
    if rc ~= 0 then
        return nil, WHY[rc] or reason(rc)
    end
    return ffi_string(peer.address, peer.address_len), peer.port
end

-- The endpoint of this try: address, port, and which try it is; nil and why there is none. It counts as asked.
function _M.pick(cluster)
    local address, port = pick(cluster)
    if not address then
        return nil, port
    end
    return address, port, peer.attempt
end

-- Picks the endpoint of this try and has nginx ask it.
function _M.set_current_peer(cluster)
    local address, port = pick(cluster)
    if not address then
        return nil, port
    end
    local balancer = require "ngx.balancer"
    if address:sub(1, 5) == "unix:" then
        return balancer.set_current_peer(address)
    end
    return balancer.set_current_peer(address, port)
end

-- The whole of a balancer: where there is no endpoint, the request ends as it does in an upstream with "amesh".
function _M.run(cluster)
    local ok, why = _M.set_current_peer(cluster)
    if not ok then
        ngx.log(ngx.WARN, "amesh: no endpoint: ", why)
        return ngx.exit(BUSY)
    end
end

return _M
