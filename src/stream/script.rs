//! What the scripts that run inside Redis have in common: each is put together from these
//! beginnings and its own body.

use uuid::Uuid;

/// Finds the clock, as `now` in milliseconds, and the `identity`, which gets an epoch if it has
/// none. The first key is the epoch's, the first argument a [`new_epoch`].
pub(super) const IDENTIFY: &str = r"
redis.call('SET', KEYS[1], ARGV[1], 'NX')
local function fact(section, name)
  return string.match(redis.call('INFO', section), name .. ':(%x+)') or ''
end
local identity = fact('server', 'run_id') .. '.' .. fact('replication', 'master_replid') .. '.'
  .. redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
";

/// Looks at groups: the facts of each that a stream has, none without the stream; those of one, by
/// name; those of the stream itself, none without it; how many entries it was ever given, as text;
/// the first entry that a group holds pending; the first that it has not read. Nil or false where
/// there is no group or entry.
pub(super) const GROUPS: &str = r"
local function groups_of(stream)
  local groups = {}
  if redis.call('EXISTS', stream) == 0 then return groups end
  for number, fields in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    groups[number] = {}
    for i = 1, #fields, 2 do groups[number][fields[i]] = fields[i + 1] end
  end
  return groups
end
local function group_of(stream, name)
  for _, facts in ipairs(groups_of(stream)) do
    if facts['name'] == name then return facts end
  end
end
local function facts_of(stream)
  local facts = {}
  if redis.call('EXISTS', stream) == 0 then return facts end
  local fields = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #fields, 2 do facts[fields[i]] = fields[i + 1] end
  return facts
end
local function added_to(stream)
  return string.format('%.0f', facts_of(stream)['entries-added'] or 0)
end
local function oldest_pending(stream, facts)
  return redis.call('XPENDING', stream, facts['name'])[2]
end
local function first_unread(stream, facts)
  local after = '(' .. facts['last-delivered-id']
  local unread = redis.call('XRANGE', stream, after, '+', 'COUNT', 1)
  return unread[1] and unread[1][1]
end
";

/// A random text for the epoch, of which no two are alike.
pub(super) fn new_epoch() -> String {
    Uuid::new_v4().simple().to_string()
}
