#!lua name=fanfare

-- Kept events: issues ids, keeps histories, publishes frames. And who is kept out.
--
-- What is stored, all of it below the prefix, here `sse:`:
--   sse:<channel>             stream: the history, one field `f` an entry, which holds the frame
--   sse:$state                "<last id> <epoch>": the newest id issued, and the first
--   sse:$config               hash: the lengths and times below, so that publishers agree on them
--   sse:$key.<channel>/<key>  the id that was issued for an idempotency key
--   sse:$revocations          sorted set: `sub:<subject>` and `jti:<token id>`, by until when
--
-- The locals of a library live as long as the process: a restart, a promotion and a reload reset
-- them. That is how a process knows that the state is not what it wrote last. While a library is
-- loaded, Redis offers it no global but `redis.register_function`.

local VERSION = --[[VERSION]]
local PREFIXES = {--[[PREFIXES]]}
-- Written to $config where there is none.
local DEFAULTS = {
  length = --[[LENGTH]],
  ttl_ms = --[[TTL_MS]],
  lag_ms = --[[LAG_MS]],
  max_event_bytes = --[[MAX_EVENT_BYTES]],
}

-- The bounds of the gateway's settings.
local MOST = {
  length = 1000000,
  ttl_ms = 2592000000,
  lag_ms = 3600000,
  max_event_bytes = 16777216,
}
local MAX_RETRY_MS = 86400000
local MAX_NAME_BYTES = 1024
local MAX_TO_BYTES = 16384
-- As deep as the gateway's JSON parser goes.
local MAX_TO_DEPTH = 127
local MAX_KEY_BYTES = 256
local MAX_CHANNEL_BYTES = 200
local MAX_REVOKED_BYTES = 1024
-- At a time: gateways keep them in memory.
local MOST_REVOCATIONS = 100000
-- For how long somebody is kept out, in seconds: where nothing is said, and at the most.
local REVOCATION_SECONDS = 2592000
local MOST_REVOCATION_SECONDS = 315360000
-- For how long tokens are good behind their `exp`, since clocks differ.
local TOKEN_LEEWAY_MS = 5000
-- Up to here a number counts milliseconds exactly, and its text has so many digits.
local MAX_MS = 9007199254740991
local MAX_DIGITS = 16
-- How far the entries of a history may be ahead of the clock, in lag bounds, to be jumped over.
local MOST_JUMPED_LAGS = 10

-- How long a read $config is good for.
local CONFIG_AGE_MS = 1000
-- Keys whose prefix and channel were found right, at the most.
local MAX_KNOWN_KEYS = 10000
-- Entries fetched at once while a history is read, and roughly the bytes.
local CHUNK_ENTRIES = 64
local CHUNK_BYTES = 1048576
-- The newest events of a history are looked for among so many bytes: some ten milliseconds.
local MAX_NEWEST_BYTES = 67108864

-- One a prefix: ids are ordered within it.
--   written: what this process last wrote to the state; ms, n, epoch: what that says
--   ms_text: `ms` as it is written; config, config_read_ms: see read_config
--   ttl_ms, ttl_changed_ms_text: the TTL, and the `ms_text` at which it was found changed
local domains = {}
for index = 1, #PREFIXES do
  local prefix = PREFIXES[index]
  domains[index] = {
    prefix = prefix,
    state_key = prefix .. '$state',
    config_key = prefix .. '$config',
    ms = 0,
  }
end

local function now_ms()
  local time = redis.call('TIME')
  local microseconds = time[2]
  return time[1] * 1000 + (microseconds - microseconds % 1000) / 1000
end

-- The whole number between `least` and `most` that `text` is.
local function whole(text, least, most)
  local number = text and text:find('^%d+$') and tonumber(text)
  return number and number >= least and number <= most and number or nil
end

-- ---------------------------------------------------------------------------------- UTF-8

-- Bytes that begin no such sequence, and the sequence (Unicode, table 3-7).
local SEQUENCES = {
  { '^[^\194-\223]*', '[\194-\223][\128-\191]' },
  { '^[^\225-\239]*', '[\225-\236\238\239][\128-\191][\128-\191]' },
  { '^[^\224]*', '\224[\160-\191][\128-\191]' },
  { '^[^\237]*', '\237[\128-\159][\128-\191]' },
  { '^[^\240]*', '\240[\144-\191][\128-\191][\128-\191]' },
  { '^[^\241-\243]*', '[\241-\243][\128-\191][\128-\191][\128-\191]' },
  { '^[^\244]*', '\244[\128-\143][\128-\191][\128-\191]' },
}

local function is_utf8(text)
  local _, ascii_end = text:find('^[^\128-\255]*')
  if ascii_end == #text then
    return true
  end
  text = text:sub(ascii_end + 1)
  for _, sequence in ipairs(SEQUENCES) do
    local _, without = text:find(sequence[1])
    if without < #text then
      -- By an ASCII character: what is left of two sequences must not become a third.
      text = text:gsub(sequence[2], '.')
    end
  end
  _, ascii_end = text:find('^[^\128-\255]*')
  return ascii_end == #text
end

-- ----------------------------------------------------------------------------------- JSON

local function is_json_number(token)
  local rest = token:match('^%-?0(.*)$') or token:match('^%-?[1-9]%d*(.*)$')
  if not rest then
    return false
  end
  rest = rest:match('^%.%d+(.*)$') or rest
  return rest == '' or rest:find('^[eE][+-]?%d+$') ~= nil
end

local function is_finite_and_flat(value, depth)
  if type(value) == 'number' then
    return value - value == 0
  end
  if type(value) ~= 'table' then
    return true
  end
  if depth > MAX_TO_DEPTH then
    return false
  end
  for _, member in pairs(value) do
    if not is_finite_and_flat(member, depth + 1) then
      return false
    end
  end
  return true
end

-- The members of a JSON object, or nil. cjson alone is too kind: it takes hexadecimal numbers,
-- NaN and control characters, which gateways do not.
local function json_object(text)
  if not text:find('^[ \t\r\n]*{') or not is_utf8(text) then
    return nil
  end
  local valid, members = pcall(cjson.decode, text)
  if not valid or not is_finite_and_flat(members, 1) then
    return nil
  end
  local unescaped = text:gsub('\\.', '')
  for inside in unescaped:gmatch('"([^"]*)"') do
    if inside:find('[%z\1-\31]') then
      return nil
    end
  end
  local bare = unescaped:gsub('"[^"]*"', '')
  for token in bare:gmatch('[^ \t\r\n{}%[%],:]+') do
    if token ~= 'true' and token ~= 'false' and token ~= 'null' and not is_json_number(token) then
      return nil
    end
  end
  return members
end

-- --------------------------------------------------------------------------- prefix, channel

local known_keys, known_keys_count = {}, 0

-- The domain and the channel of a history's key.
local function find_domain(key)
  for _, domain in ipairs(domains) do
    if key:sub(1, #domain.prefix) == domain.prefix then
      return domain, key:sub(#domain.prefix + 1)
    end
  end
end

local function is_channel(name)
  return #name >= 1 and #name <= MAX_CHANNEL_BYTES and not name:find('[^%w._~:%-]')
end

-- The domain of a history's key, or nil and the rule it breaks.
local function domain_of(key)
  local domain, channel = find_domain(key)
  if not domain then
    return nil, 'begins with a prefix this library was loaded for: '
      .. table.concat(PREFIXES, ', ')
  end
  if not is_channel(channel) then
    return nil, 'must be a prefix and a channel of 1 to 200 bytes of A-Z a-z 0-9 . _ - ~ :'
  end
  if known_keys_count >= MAX_KNOWN_KEYS then
    known_keys, known_keys_count = {}, 0
  end
  known_keys[key] = domain
  known_keys_count = known_keys_count + 1
  return domain
end

-- ---------------------------------------------------------------------------- configuration

local CONFIG_FIELDS = { 'length', 'ttl_ms', 'lag_ms', 'max_event_bytes', 'old_ttl_ms', 'ttl_since' }

-- Reads $config; what is missing or makes no sense is the default.
--   old_ttl_ms, ttl_since: the TTL was raised when ttl_since was the newest id, and histories
--   from before are only sure to have lived for the old one
local function read_config(domain, now)
  local found = redis.pcall('HMGET', domain.config_key, unpack(CONFIG_FIELDS))
  local config = { absent = true }
  if found.err then
    -- A user who may not read it must not publish by other values than everybody else.
    if not found.err:find('WRONGTYPE', 1, true) then
      error(found)
    end
    found = {}
    config.absent = false
  end
  for index, field in ipairs(CONFIG_FIELDS) do
    local text = found[index]
    if text then
      config.absent = false
    end
    if DEFAULTS[field] then
      config[field] = whole(text, 1, MOST[field]) or DEFAULTS[field]
    end
  end
  if config.ttl_ms <= config.lag_ms then
    config.ttl_ms, config.lag_ms = DEFAULTS.ttl_ms, DEFAULTS.lag_ms
  end
  config.old_ttl_ms = whole(found[5], 1, MOST.ttl_ms) or config.ttl_ms
  config.ttl_since = found[6] and found[6]:match('^%d+%-%d+$') or '0-0'
  config.length_text = ('%.0f'):format(config.length)
  if config.ttl_ms ~= domain.ttl_ms then
    domain.ttl_ms, domain.ttl_changed_ms_text = config.ttl_ms, domain.ms_text
  end
  domain.config, domain.config_read_ms = config, now
  return config
end

local function config_of(domain, now)
  local config = domain.config
  if config then
    local age = now - domain.config_read_ms
    if age >= 0 and age < CONFIG_AGE_MS then
      return config
    end
  end
  return read_config(domain, now)
end

local function config_pairs(config)
  return 'length', ('%.0f'):format(config.length), 'ttl_ms', ('%.0f'):format(config.ttl_ms),
    'lag_ms', ('%.0f'):format(config.lag_ms),
    'max_event_bytes', ('%.0f'):format(config.max_event_bytes),
    'old_ttl_ms', ('%.0f'):format(config.old_ttl_ms), 'ttl_since', config.ttl_since
end

-- ------------------------------------------------------------------------------------- ids

-- The newest id issued, its milliseconds, and the epoch; nil where there is no state, or one that
-- no function has written.
local function parse_state(state)
  if not state then
    return nil
  end
  local last, ms, n, epoch, epoch_ms, epoch_n = state:match('^((%d+)%-(%d+)) ((%d+)%-(%d+))$')
  if not last or #n > MAX_DIGITS or #epoch_ms > MAX_DIGITS or #epoch_n > MAX_DIGITS
    or tonumber(ms) > MAX_MS - MOST.lag_ms then
    return nil
  end
  return last, tonumber(ms), epoch
end

-- Issues the next id and writes the state: the first write of every function that writes, so
-- that whatever fails afterwards, no id is issued twice. `beyond_ms`: the id jumps beyond it.
local function issue(domain, now, beyond_ms)
  local state = redis.call('GET', domain.state_key)
  local ms, n, epoch = domain.ms, 0, domain.epoch
  domain.before_state, domain.before_written = state, domain.written
  domain.before_ms, domain.before_ms_text = ms, domain.ms_text
  domain.before_n, domain.before_epoch = domain.n, epoch
  if state and state == domain.written and not beyond_ms then
    if now > ms then
      ms = now
      domain.ms_text = ('%.0f'):format(ms)
    else
      n = domain.n + 1
    end
  else
    -- Restarted, promoted, flushed: ids that were issued may be lost. They are at most the lag
    -- bound ahead of what is known.
    local _, state_ms, state_epoch = parse_state(state)
    ms = math.max(now, state_ms or 0, ms, beyond_ms or 0) + read_config(domain, now).lag_ms
    epoch = state_epoch
    domain.ms_text = ('%.0f'):format(ms)
  end
  local id = domain.ms_text .. '-' .. n
  epoch = epoch or id
  local written = id .. ' ' .. epoch
  redis.call('SET', domain.state_key, written)
  domain.written, domain.ms, domain.n, domain.epoch = written, ms, n, epoch
  if domain.config.absent then
    -- A publisher that may not write it goes on with the same values. Asked first: a refusal
    -- would stand in Redis' ACL LOG.
    if redis.acl_check_cmd('HSET', domain.config_key, 'length', '1') then
      redis.pcall('HSET', domain.config_key, config_pairs(domain.config))
    end
    domain.config.absent = false
  end
  return id
end

-- Takes back the id that was issued just now and that nobody has seen. The very first stays: a
-- publisher may not delete the state.
local function take_back(domain)
  if not domain.before_state then
    return
  end
  redis.call('SET', domain.state_key, domain.before_state)
  domain.written, domain.ms = domain.before_written, domain.before_ms
  domain.ms_text, domain.n, domain.epoch = domain.before_ms_text, domain.before_n, domain.before_epoch
end

-- ---------------------------------------------------------------------------------- frames

-- The frame of an entry; nil where somebody else has written it.
local function frame_of(entry)
  local fields = entry[2]
  for index = 1, #fields, 2 do
    if fields[index] == 'f' then
      return fields[index + 1]
    end
  end
end

-- The state of a channel whose newest entry this is: how it has ended, and its own length. It is the last
-- field of the header, closed by a semicolon.
local function state_of(entry)
  local frame = frame_of(entry)
  local state = frame and frame:match('^[^\n]* ([^ \n]*;)\n')
  if state then
    return state:match('%f[%l]end:(%l+)[,;]'), state:match('%f[%l]length:(%d+)[,;]')
  end
end

-- ----------------------------------------------------------------------------------- publish

local function fault(option, rule)
  return redis.error_reply('ERR fanfare_publish: ' .. option .. ': ' .. rule)
end

-- The refusal where the user may not run a command; nil where it may. To be asked before anything
-- is stored: an event that is kept and never told would be a hole.
local function forbidden(command, key)
  if not redis.acl_check_cmd(command, key, '') then
    return redis.error_reply('NOPERM fanfare_publish: this user may not ' .. command .. ' to ' .. key)
  end
end

-- Whether XADD was refused because the stream has had a later id.
local function is_ahead(added)
  return added.err and (added.err:find('equal or smaller', 1, true)
    or added.err:find('exhausted the last possible ID', 1, true)) ~= nil
end

-- The refusal where somebody else has written to a history, with an id that none of ours follows.
local function not_ours(key)
  return redis.error_reply('WRONGTYPE fanfare_publish: ' .. key .. ' has had an entry that is not '
    .. 'of this function, ahead of all ids. DEL ' .. key .. ' heals it')
end

local END_REASONS = { done = true, error = true, stopped = true }
-- No session has it, so that gateways of before send nothing for an end without an event.
local TO_NOBODY = '{"$end":"-"}'
-- What closes the state in the header of a frame.
local SEMICOLON = (';'):byte()

-- The state of a channel as a field of its newest frame, if it has one.
local function state_field(ends, own_length)
  if ends and own_length then
    return ' length:' .. own_length .. ',end:' .. ends .. ';'
  elseif ends then
    return ' end:' .. ends .. ';'
  end
  return own_length and ' length:' .. own_length .. ';' or ''
end

-- Checks the value of each option and puts what it says into `fields`; returns the rule that is
-- broken.
local OPTIONS = {
  event = function(fields, name)
    if #name > MAX_NAME_BYTES then
      return 'must have at most ' .. MAX_NAME_BYTES .. ' bytes'
    elseif name:sub(1, 1) == '$' then
      return 'names that begin with $ are the gateway\'s own'
    elseif name:find('[%z\r\n]') then
      return 'must not contain CR, LF or NUL'
    elseif not is_utf8(name) then
      return 'must be UTF-8'
    end
    fields.event = name
  end,
  retry = function(fields, text)
    local retry_ms = whole(text, 0, MAX_RETRY_MS)
    if not retry_ms then
      return 'must be a whole number of milliseconds, at most a day (' .. MAX_RETRY_MS .. ')'
    end
    fields.retry = ('%.0f'):format(retry_ms)
  end,
  to = function(fields, text)
    if #text > MAX_TO_BYTES then
      return 'must have at most ' .. MAX_TO_BYTES .. ' bytes'
    end
    local members = json_object(text)
    if not members then
      return 'must be a JSON object'
    end
    -- The empty object restricts nothing.
    fields.to = next(members) ~= nil and text or ''
  end,
  history = function(fields, text)
    local length = whole(text, 1, MOST.length)
    if not length then
      return 'must be a whole number from 1 to ' .. MOST.length
    end
    fields.length = length
  end,
  key = function(fields, text)
    if #text < 1 or #text > MAX_KEY_BYTES then
      return 'must have 1 to ' .. MAX_KEY_BYTES .. ' bytes'
    end
    fields.key = text
  end,
  ['end'] = function(fields, reason)
    if not END_REASONS[reason] then
      return 'must be done, error or stopped'
    end
    fields.ends = reason
  end,
  traceparent = function(fields, text)
    local trace, span, flags = text:match('^00%-([0-9a-f]+)%-([0-9a-f]+)%-([0-9a-f]+)$')
    if not trace or #trace ~= 32 or #span ~= 16 or #flags ~= 2
      or not trace:find('[^0]') or not span:find('[^0]') then
      return 'must be 00-<32 hex digits>-<16>-<2> (W3C Trace Context)'
    end
    fields.traceparent = text
  end,
}

local function read_options(argv)
  local fields = { event = '', retry = '-', to = '', traceparent = '' }
  local seen = {}
  for index = 2, #argv, 2 do
    local option, value = argv[index], argv[index + 1]
    local check = OPTIONS[option]
    if not check then
      -- Its bytes may be anything, an error reply is one line.
      local shown = (option:sub(1, 40)):gsub('[^%w_-]', '?')
      return nil, fault(shown, 'must be one of event, retry, to, history, key, end, traceparent')
    elseif seen[option] then
      return nil, fault(option, 'is given twice')
    elseif not value then
      return nil, fault(option, 'has no value')
    end
    seen[option] = true
    local rule = check(fields, value)
    if rule then
      return nil, fault(option, rule)
    end
  end
  return fields
end

-- FCALL fanfare_publish 1 <prefix><channel> <data> [<option> <value>]...  ->  the id
local function publish(keys, argv)
  local key, data = keys[1], argv[1]
  if #keys ~= 1 then
    return fault('number of keys', 'must be 1: the prefix and the channel')
  end
  local domain = known_keys[key]
  if not domain then
    local rule
    domain, rule = domain_of(key)
    if not domain then
      return fault('channel', rule)
    end
  end
  if not data then
    return fault('data', 'is missing')
  end
  local now = now_ms()
  local config = config_of(domain, now)
  if #data > config.max_event_bytes then
    return fault('data', 'must have at most ' .. config.max_event_bytes .. ' bytes')
  end
  local _, ascii_end = data:find('^[^\128-\255]*')
  if ascii_end ~= #data and not is_utf8(data) then
    return fault('data', 'must be UTF-8')
  end
  local fields
  if argv[2] then
    local refused
    fields, refused = read_options(argv)
    if refused then
      return refused
    end
  end

  local refused = forbidden('PUBLISH', key)
  if refused then
    return refused
  end
  -- The first command that touches the key: another type of key is refused here.
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', '1')[1]
  local prev = newest and newest[1] or '0-0'
  local idempotency_key
  if fields and fields.key then
    idempotency_key = domain.prefix .. '$key.' .. key:sub(#domain.prefix + 1) .. '/' .. fields.key
    local first = redis.call('GET', idempotency_key)
    if first then
      return first
    end
    refused = forbidden('SET', idempotency_key)
    if refused then
      return refused
    end
  end
  local ended, own_length
  -- Nearly all channels have no state: one byte tells.
  local last_frame = newest and newest[2][2]
  local header_end = last_frame and last_frame:find('\n', 1, true)
  if header_end and last_frame:byte(header_end - 1) == SEMICOLON then
    ended, own_length = state_of(newest)
    if own_length and tonumber(own_length) <= config.length then
      own_length = nil
    end
  end
  if ended then
    return redis.error_reply('ENDED fanfare_publish: the channel has ended: ' .. ended)
  end

  local id = issue(domain, now)
  -- Within one millisecond of ids the key expires when it should already, unless the TTL has
  -- changed meanwhile: ids that run ahead of the clock stay at theirs for a while.
  local is_expiry_new = prev:sub(1, #domain.ms_text) ~= domain.ms_text
    or domain.ms_text == domain.ttl_changed_ms_text
  refused = is_expiry_new and forbidden('PEXPIREAT', key)
  if refused then
    take_back(domain)
    return refused
  end
  local now_text = now == domain.ms and domain.ms_text or ('%.0f'):format(now)
  local rest = ' ' .. prev .. ' ' .. now_text
  if fields then
    if fields.ends and data == '' then
      fields.event, fields.to = '', TO_NOBODY
    end
    if fields.length and fields.length > config.length then
      own_length = ('%.0f'):format(fields.length)
    end
    rest = rest .. ' ' .. fields.retry .. ' ' .. #fields.event .. ' ' .. #fields.to .. ' '
      .. #fields.traceparent .. state_field(fields.ends, own_length) .. '\n' .. fields.event .. fields.to .. fields.traceparent .. data
  else
    rest = rest .. ' - 0 0 0' .. (own_length and state_field(nil, own_length) or '') .. '\n' .. data
  end
  local frame = '\2551e' .. id .. rest
  config = domain.config
  local length_text = own_length or config.length_text
  if fields and fields.length then
    length_text = ('%.0f'):format(fields.length)
  end
  local added = redis.pcall('XADD', key, 'MAXLEN', length_text, id, 'f', frame)
  if added ~= id and is_ahead(added) then
    -- The history is ahead of the state, which was deleted or restored by hand: jump beyond it.
    -- But what one channel holds must not drive the ids of all.
    local most_ms = math.max(domain.ms, now + MOST_JUMPED_LAGS * config.lag_ms)
    take_back(domain)
    local beyond_ms = tonumber(prev:match('^%d+'))
    if beyond_ms > most_ms then
      return not_ours(key)
    end
    id = issue(domain, now, beyond_ms)
    frame = '\2551e' .. id .. rest
    is_expiry_new = true
    added = redis.pcall('XADD', key, 'MAXLEN', length_text, id, 'f', frame)
  end
  if added ~= id then
    take_back(domain)
    return is_ahead(added) and not_ours(key) or added
  end
  if is_expiry_new then
    redis.call('PEXPIREAT', key, ('%.0f'):format(domain.ms + config.ttl_ms))
  end
  if idempotency_key then
    redis.call('SET', idempotency_key, id, 'PX', ('%.0f'):format(config.ttl_ms))
  end
  redis.call('PUBLISH', key, frame)
  return id
end

-- -------------------------------------------------------------------------------- revocation

local function revoke_fault(argument, rule)
  return redis.error_reply('ERR fanfare_revoke: ' .. argument .. ': ' .. rule)
end

-- FCALL fanfare_revoke 1 <prefix>$revocations sub|jti <value> [exp <Unix s> | ttl <s>]
--   ->  until when, in Unix seconds
--
-- Stored first and told then, at once: a gateway that subscribes and then reads misses nobody.
local function revoke(keys, argv)
  local key = keys[1]
  local domain, name = find_domain(key or '')
  if #keys ~= 1 or not domain or name ~= '$revocations' then
    return revoke_fault('key', 'must be <prefix>$revocations, the only key')
  end
  local kind, value, option, number = argv[1], argv[2], argv[3], argv[4]
  if kind ~= 'sub' and kind ~= 'jti' then
    return revoke_fault('arguments', 'begin with sub or jti')
  elseif not value or #value < 1 or #value > MAX_REVOKED_BYTES or not is_utf8(value) then
    return revoke_fault(kind, 'must be UTF-8 of 1 to ' .. MAX_REVOKED_BYTES .. ' bytes')
  elseif option and option ~= 'exp' and option ~= 'ttl' or argv[5] then
    return revoke_fault('arguments', 'end with exp or ttl and a number, or neither')
  end
  local now = now_ms()
  local now_s = (now - now % 1000) / 1000
  local until_s = now_s + REVOCATION_SECONDS
  if option == 'ttl' then
    local seconds = whole(number, 1, MOST_REVOCATION_SECONDS)
    if not seconds then
      return revoke_fault('ttl', 'must be a whole number of seconds from 1 to ' .. MOST_REVOCATION_SECONDS)
    end
    -- Not shorter: the second that has begun counts.
    until_s = now_s + 1 + seconds
  elseif option == 'exp' then
    until_s = whole(number, now_s + 1, now_s + 1 + MOST_REVOCATION_SECONDS)
    if not until_s then
      return revoke_fault('exp', 'must be a time to come in Unix seconds, at most ten years from now')
    end
  end

  local channel = domain.prefix .. '$control'
  if not redis.acl_check_cmd('PUBLISH', channel, '') then
    return redis.error_reply('NOPERM fanfare_revoke: this user may not PUBLISH to ' .. channel)
  end
  local member = kind .. ':' .. value
  redis.call('ZREMRANGEBYSCORE', key, '-inf', ('%.0f'):format(now - TOKEN_LEEWAY_MS))
  if redis.call('ZCARD', key) >= MOST_REVOCATIONS and not redis.call('ZSCORE', key, member) then
    return redis.error_reply('ERR there are ' .. MOST_REVOCATIONS .. ' revocations, which is the most')
  end
  local until_ms_text = ('%.0f'):format(until_s * 1000)
  redis.call('ZADD', key, 'GT', until_ms_text, member)
  -- One of them lasts until the last does.
  local kept_ms_text = ('%.0f'):format(until_s * 1000 + TOKEN_LEEWAY_MS)
  redis.call('PEXPIREAT', key, kept_ms_text, 'NX')
  redis.call('PEXPIREAT', key, kept_ms_text, 'GT')
  redis.call('PUBLISH', channel, '\2551r' .. until_ms_text .. '\n' .. member)
  return until_s
end

-- ------------------------------------------------------------------------------------- probe

-- FCALL fanfare_probe 1 <prefix>$probe.<hex> <number>  ->  the id
local function probe(keys, argv)
  local channel, number = keys[1], argv[1]
  local domain, name = find_domain(channel or '')
  if #keys ~= 1 or not domain or not name:find('^%$probe%.%x+$') then
    return redis.error_reply('ERR fanfare_probe: channel: must be <prefix>$probe.<hex>, the only key')
  elseif not number or not number:find('^%d+$') or #number > 20 then
    return redis.error_reply('ERR fanfare_probe: number: must be a whole number')
  end
  local now = now_ms()
  config_of(domain, now)
  local id = issue(domain, now)
  redis.call('PUBLISH', channel, '\2551p' .. id .. ' ' .. domain.epoch .. ' ' .. VERSION .. '\n' .. number)
  return id
end

-- ----------------------------------------------------------------------------------- history

-- Calls `visit(id, frame)` for the entries from one end towards the other until it returns
-- false. Entries are fetched in chunks: a long history is never held as a whole.
local function walk(command, key, from, to, visit)
  local count = 4
  local after = from
  while true do
    local entries = redis.call(command, key, after, to, 'COUNT', count)
    local bytes = 0
    for _, entry in ipairs(entries) do
      local frame = frame_of(entry)
      if frame then
        bytes = bytes + #frame
        if not visit(entry[1], frame) then
          return
        end
      end
    end
    if #entries < count then
      return
    end
    after = '(' .. entries[#entries][1]
    count = math.max(1, math.min(CHUNK_ENTRIES, math.floor(CHUNK_BYTES * #entries / (bytes + 1))))
  end
end

-- The id of the `count`-th entry below `from`, or of the last there is within `max_bytes`; nil
-- where there is none.
local function id_before(key, from, count, max_bytes)
  local found
  walk('XREVRANGE', key, from, '-', function(id, frame)
    max_bytes = max_bytes - #frame
    if found and max_bytes < 0 then
      return false
    end
    found = id
    count = count - 1
    return count > 0
  end)
  return found
end

-- Whether Redis may drop histories to make room; yes when it does not say.
local function is_evictable()
  local info = redis.pcall('INFO', 'memory')
  if type(info) ~= 'string' then
    return 1
  end
  local limit, policy = info:match('maxmemory:(%d+)'), info:match('maxmemory_policy:([%w-]+)')
  return (limit == '0' or policy == 'noeviction') and 0 or 1
end

local function history_fault(argument, rule)
  return redis.error_reply('ERR fanfare_history: ' .. argument .. ': ' .. rule)
end

-- FCALL_RO fanfare_history 1 <prefix><channel> from <id> <preceding> <max events> <max bytes>
--   [<min events>]
-- FCALL_RO fanfare_history 1 <prefix><channel> newest <n> <max events> <max bytes> [<min events>]
--   The first <min events> (0 to 2) are answered even if they exceed <max bytes>. The default is 2,
--   so that a read that begins with the last known event also returns the event after it. With 0
--   the frames of an answer never exceed <max bytes>; it may hold none, and not be complete.
--   ->  newest id issued, epoch, the time in Unix milliseconds, ttl_ms, old_ttl_ms, ttl_since,
--       evictable (0, 1; 2: the key holds something else, so that nothing is known of the
--       channel's history), oldest id, its prev, start, complete, frame...
--   Where the channel has ended and the answer is complete without its last frame, { its id, how }
--   follows.
local function history(keys, argv)
  local key = keys[1]
  if #keys ~= 1 then
    return history_fault('number of keys', 'must be 1: the prefix and the channel')
  end
  local domain, rule = known_keys[key], nil
  if not domain then
    domain, rule = domain_of(key)
    if not domain then
      return history_fault('channel', rule)
    end
  end
  local from, preceding, newest, events_index
  if argv[1] == 'from' then
    from = argv[2] and argv[2]:match('^%d+%-%d+$')
    preceding = whole(argv[3], 0, MOST.length)
    if not from or not preceding then
      return history_fault('from', 'must be an id and how many events before it')
    end
    events_index = 4
  elseif argv[1] == 'newest' then
    newest = whole(argv[2], 1, MOST.length)
    if not newest then
      return history_fault('newest', 'must be a whole number from 1 to ' .. MOST.length)
    end
    events_index = 3
  else
    return history_fault('arguments', 'begin with from or newest')
  end
  local max_events = whole(argv[events_index], 1, MOST.length)
  local max_bytes = whole(argv[events_index + 1], 1, 4294967296)
  local min_events = 2
  if argv[events_index + 2] then
    min_events = whole(argv[events_index + 2], 0, 2)
  end
  if not max_events or not max_bytes or not min_events or argv[events_index + 3] then
    return history_fault('arguments', 'end with max events, max bytes and perhaps min events (0 to 2)')
  end

  local now = now_ms()
  local config = config_of(domain, now)
  local last, _, epoch = parse_state(redis.call('GET', domain.state_key))
  local first = redis.pcall('XRANGE', key, '-', '+', 'COUNT', '1')
  if first.err then
    if not first.err:find('WRONGTYPE', 1, true) then
      return first
    end
    return { last or '', epoch or '', now, config.ttl_ms, config.old_ttl_ms, config.ttl_since,
      2, '', '', from or '0-0', 1 }
  end
  local oldest, oldest_prev = '', ''
  walk('XRANGE', key, '-', '+', function(id, frame)
    oldest, oldest_prev = id, frame:match('^\2551e%d+%-%d+ (%d+%-%d+) ') or ''
    return false
  end)

  local start
  if newest then
    start = id_before(key, '+', newest, MAX_NEWEST_BYTES) or '0-0'
  else
    -- Redis takes no range that ends before 0-0.
    local has_before = preceding > 0 and from ~= '0-0'
    -- What is asked for must have its place in the page.
    start = has_before and id_before(key, '(' .. from, preceding, max_bytes / 2) or from
  end
  local reply = { last or '', epoch or '', now, config.ttl_ms, config.old_ttl_ms, config.ttl_since,
    is_evictable(), oldest, oldest_prev, start, 1 }
  local events, bytes = 0, 0
  walk('XRANGE', key, start, '+', function(_, frame)
    bytes = bytes + #frame
    if events == max_events or events >= min_events and bytes > max_bytes then
      reply[11] = 0
      return false
    end
    events = events + 1
    reply[11 + events] = frame
    return true
  end)
  if events == 0 and oldest ~= '' and reply[11] == 1 then
    local last_entry = redis.call('XREVRANGE', key, '+', '-', 'COUNT', '1')[1]
    local ended = last_entry and state_of(last_entry)
    if ended then
      reply[12] = { last_entry[1], ended }
    end
  end
  return reply
end

-- ----------------------------------------------------------------------------- administration

local function config_reply(flag, config)
  return { flag and 1 or 0, config.length, config.ttl_ms, config.lag_ms, config.max_event_bytes,
    config.old_ttl_ms, config.ttl_since }
end

-- FCALL_RO fanfare_config 1 <prefix>$config  ->  whether there is one, and its six values
--
-- Even where Redis takes no writes now.
local function config(keys)
  local domain, name = find_domain(keys[1] or '')
  if #keys ~= 1 or not domain or name ~= '$config' then
    return redis.error_reply('ERR fanfare_config: key: must be <prefix>$config, the only key')
  end
  local found = read_config(domain, now_ms())
  return config_reply(not found.absent, found)
end

-- FCALL fanfare_configure 1 <prefix>$config absent|set <length> <ttl_ms> <lag_ms>
--   <max_event_bytes>  ->  whether it was written, and the six values of $config
--
-- A function, so that no event comes between a raised TTL and the note of since when.
local function configure(keys, argv)
  local domain, name = find_domain(keys[1] or '')
  if #keys ~= 1 or not domain or name ~= '$config' then
    return redis.error_reply('ERR fanfare_configure: key: must be <prefix>$config, the only key')
  end
  local length, ttl_ms = whole(argv[2], 1, MOST.length), whole(argv[3], 1, MOST.ttl_ms)
  local lag_ms = whole(argv[4], 1, MOST.lag_ms)
  local max_event_bytes = whole(argv[5], 1, MOST.max_event_bytes)
  if argv[1] ~= 'absent' and argv[1] ~= 'set' or argv[6]
    or not length or not ttl_ms or not lag_ms or not max_event_bytes or ttl_ms <= lag_ms then
    return redis.error_reply('ERR fanfare_configure: arguments: must be absent or set, length, '
      .. 'ttl_ms, lag_ms (below ttl_ms), max_event_bytes')
  end
  local config = read_config(domain, now_ms())
  local write = config.absent or argv[1] == 'set'
  if write then
    -- Without a $config there may be histories all the same: they had the defaults.
    local last, last_ms = parse_state(redis.call('GET', domain.state_key))
    if last and ttl_ms > config.ttl_ms then
      local since_ms = tonumber(config.ttl_since:match('^%d+'))
      local still_judged = since_ms > 0 and last_ms - since_ms < config.ttl_ms
      config.old_ttl_ms = still_judged and math.min(config.old_ttl_ms, config.ttl_ms) or config.ttl_ms
      config.ttl_since = last
    elseif not last then
      config.old_ttl_ms, config.ttl_since = ttl_ms, '0-0'
    else
      config.old_ttl_ms = math.min(config.old_ttl_ms, ttl_ms)
    end
    config.length, config.ttl_ms, config.lag_ms = length, ttl_ms, lag_ms
    config.max_event_bytes = max_event_bytes
    -- Until they are read again, the old values stand: unless the write succeeds, they are right.
    domain.config = nil
    redis.call('HSET', domain.config_key, config_pairs(config))
  end
  return config_reply(write, config)
end

-- FCALL_RO fanfare_library 0  ->  version, prefix...
local function library()
  return { VERSION, unpack(PREFIXES) }
end

redis.register_function('fanfare_publish', publish)
redis.register_function('fanfare_revoke', revoke)
redis.register_function('fanfare_probe', probe)
redis.register_function('fanfare_configure', configure)
redis.register_function{
  function_name = 'fanfare_config', callback = config, flags = { 'no-writes' },
}
redis.register_function{
  function_name = 'fanfare_history', callback = history, flags = { 'no-writes' },
}
redis.register_function{
  function_name = 'fanfare_library', callback = library, flags = { 'no-writes' },
}
