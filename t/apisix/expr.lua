-- The conditions of APISIX's `vars`.
local _M = {}

local function text(value)
    return value == nil and "" or tostring(value)
end

local operators = {
    ["=="] = function(left, right)
        if right == ngx.null then
            return left == nil
        end
        return left ~= nil and tostring(left) == tostring(right)
    end,
    [">"] = function(left, right) return tonumber(left) ~= nil and tonumber(left) > tonumber(right) end,
    [">="] = function(left, right) return tonumber(left) ~= nil and tonumber(left) >= tonumber(right) end,
    ["<"] = function(left, right) return tonumber(left) ~= nil and tonumber(left) < tonumber(right) end,
    ["<="] = function(left, right) return tonumber(left) ~= nil and tonumber(left) <= tonumber(right) end,
    ["~~"] = function(left, right) return left ~= nil and ngx.re.find(text(left), right, "jo") ~= nil end,
    ["~*"] = function(left, right) return left ~= nil and ngx.re.find(text(left), right, "joi") ~= nil end,
    ["in"] = function(left, right)
        for _, one in ipairs(right) do
            if tostring(left) == tostring(one) then
                return true
            end
        end
        return false
    end,
}
operators["~="] = function(left, right) return not operators["=="](left, right) end

local logic = { AND = true, OR = true, ["!AND"] = true, ["!OR"] = true }

local function one(rule)
    if type(rule[1]) == "table" or logic[rule[1]] then
        return _M.eval(rule)
    end
    local operator, right = rule[2], rule[3]
    local negated = operator == "!"
    if negated then
        operator, right = rule[3], rule[4]
    end
    local of = operators[operator] or error("no operator " .. tostring(operator))
    return of(ngx.var[rule[1]], right) ~= negated
end

-- Whether the request meets them all, or as the first element says.
function _M.eval(rules)
    local first = rules[1]
    if type(first) == "string" and not logic[first] then
        return one(rules)
    end
    local kind = logic[first] and first or "AND"
    local any = kind == "OR" or kind == "!OR"
    local result = not any
    for i = logic[first] and 2 or 1, #rules do
        if one(rules[i]) == any then
            result = any
            break
        end
    end
    if kind:sub(1, 1) == "!" then
        return not result
    end
    return result
end

return _M
