//! Where a group stands: how far delivery has come on both streams, and whether this is still the
//! Redis, and the data, that we know.
//!
//! The *identity* of a Redis is its run, its replication history, and a random key of ours, the
//! epoch. A restart changes the first, a failover the second, and emptying it only the third. When
//! any changes, entries may be lost that senders take for written.
//!
//! The *watermark* is the instant before which everything written is delivered or dead: on each
//! stream the time of the oldest pending entry that is no suspect, else that of the first entry
//! which nobody has read, else now; the smaller of the two. All of it is read by one script, so
//! that its parts belong together. After the low watermarks of "`MillWheel`" (Akidau et al.,
//! VLDB 2013).

use redis::{FromRedisValue, Value, cmd};

use super::script::{GROUPS, IDENTIFY, new_epoch};
use super::{Group, Producer, Repeats, Source, StreamError, StreamId};
use crate::wire::{MOST_ITEMS, StreamState, Suspect, SuspectReport, Timestamp};

/// Surveys the group, forgets suspects that are no longer pending, and publishes the instant before
/// which everything is settled, suspects as well: a sender keeps what is not, and sends it again if
/// it may be lost. The watermark passes no more suspects than are answered. Notes how many entries
/// the streams were given, by which their loss is known if the group goes with them.
///
/// A sender that was here within 30 s and has not seen to this Redis is sending again, and so is one
/// whose last entry of these is not delivered yet: it is younger than the windows that it belongs
/// to. A service all of whose senders are done, one of them within a minute, has sent again. One that
/// was not here for an hour is forgotten.
const SURVEY: &str = r"
local streams, group = {KEYS[2], KEYS[3]}, ARGV[2]
local is_suspect, suspects = {}, {}
local noted = redis.call('HGETALL', KEYS[4])
for i = 1, #noted, 2 do
  local stream, id = string.match(noted[i], '^(%d) (%S+)$')
  if #redis.call('XPENDING', streams[tonumber(stream)], group, id, id, 1) == 0 then
    redis.call('HDEL', KEYS[4], noted[i])
  elseif #suspects < tonumber(ARGV[3]) then
    is_suspect[noted[i]] = true
    suspects[#suspects + 1] = {tonumber(stream), id, noted[i + 1]}
  end
end
local function first_undelivered(number, facts)
  local from, page = '-', {}
  repeat
    page = redis.call('XPENDING', streams[number], group, from, '+', 100)
    for _, entry in ipairs(page) do
      if not is_suspect[number .. ' ' .. entry[1]] then return entry[1] end
      from = '(' .. entry[1]
    end
  until #page == 0
  return first_unread(streams[number], facts)
end
local last = tonumber(redis.call('HGET', KEYS[5], group)) or 0
local function millis(id) return tonumber(string.match(id, '%d+')) end
-- An id that is not past, because the clock went back, says nothing about when it was written.
local function down_to(watermark, id)
  if not id then return watermark end
  return math.min(watermark, millis(id) <= now and millis(id) or math.min(last, now))
end
local watermark, settled, states = now, now, {}
for number, stream in ipairs(streams) do
  local facts = group_of(stream, group)
  if not facts then return redis.error_reply('NOGROUP the group ' .. group .. ' is gone') end
  local id = first_undelivered(number, facts)
  local oldest = oldest_pending(stream, facts)
  watermark = down_to(watermark, id)
  settled = down_to(settled, oldest or id)
  states[number] = {facts['lag'] or -1, facts['pending'], oldest or ''}
end
redis.call('HSET', KEYS[5], group, string.format('%.0f', settled))
local missed = string.match(redis.call('HGET', KEYS[8], group) or '', '^%d+') or '0'
redis.call('HSET', KEYS[8], group, missed .. ' ' .. added_to(KEYS[2]) .. ' ' .. added_to(KEYS[3]))
local is_resending, has_resent = {}, {}
local senders = redis.call('HGETALL', KEYS[7])
for i = 1, #senders, 2 do
  local service = string.match(senders[i], '^(.*)/')
  local seen_to, at, done_at = string.match(senders[i + 1], '^(%S*) (%d+) (%d+)$')
  local age = math.abs(now - tonumber(at))
  local is_done = seen_to == identity and tonumber(done_at) <= watermark
  if age > 3600000 then
    redis.call('HDEL', KEYS[7], senders[i])
  elseif not is_done and age < 30000 then
    is_resending[service] = true
  elseif is_done and math.abs(now - tonumber(done_at)) < 60000 then
    has_resent[service] = true
  end
end
local resending, resent = {}, {}
for service in pairs(is_resending) do
  if #resending < tonumber(ARGV[3]) then resending[#resending + 1] = service end
  has_resent[service] = nil
end
for service in pairs(has_resent) do
  if #resent < tonumber(ARGV[3]) then resent[#resent + 1] = service end
end
return {identity, now, watermark, states, suspects, redis.call('XLEN', KEYS[6]), resending, resent}
";

/// Notes that a sender is here, and which Redis it has seen to. Answers the smallest watermark that
/// any group has published, or -1; and of how many groups the monitor counts again what comes again,
/// as their relays have said within an hour.
const OBSERVE: &str = r"
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3] .. ' ' .. string.format('%.0f', now) .. ' ' .. ARGV[4])
local watermark = -1
for _, published in ipairs(redis.call('HVALS', KEYS[2])) do
  local millis = tonumber(published)
  if millis and (watermark < 0 or millis < watermark) then watermark = millis end
end
local again = 0
for _, seconds in ipairs(redis.call('HVALS', KEYS[4])) do
  if now / 1000 - tonumber(seconds) < 3600 then again = again + 1 end
end
return {identity, now, watermark, again}
";

/// Other groups that hold back entries which are older than a day, and none of whose consumers
/// has asked for anything in that time.
const SILENT: &str = r"
local long_ago = (redis.call('TIME')[1] - ARGV[2]) * 1000
local silent, names = {}, {}
for _, stream in ipairs(KEYS) do
  for _, facts in ipairs(groups_of(stream)) do
    local name = facts['name']
    local held = oldest_pending(stream, facts) or first_unread(stream, facts)
    local is_old = held and tonumber(string.match(held, '%d+')) < long_ago
    for _, consumer in ipairs(is_old and redis.call('XINFO', 'CONSUMERS', stream, name) or {}) do
      if consumer[6] < ARGV[2] * 1000 then is_old = false end
    end
    if is_old and name ~= ARGV[1] and not names[name] then
      names[name] = true
      silent[#silent + 1] = name
    end
  end
end
return silent
";

/// A group that has not read for so long holds up the deletion of entries, in seconds.
const SILENT_AFTER_SECONDS: u32 = 24 * 3_600;

/// Where the relays' group stands at one instant.
#[derive(Clone, Debug, PartialEq)]
pub struct Survey {
    /// Which Redis, and which data.
    pub identity: String,
    /// Redis' clock.
    pub now: Timestamp,
    /// Everything written before is delivered or dead, except for the suspects.
    pub watermark: Timestamp,
    /// The announcements' stream.
    pub windows: StreamState,
    /// The heartbeats' stream.
    pub heartbeats: StreamState,
    /// Entries that the watermark does not wait for.
    pub suspects: Vec<Suspect>,
    /// Dead letters.
    pub dead_letters: u64,
    /// Services that are here and have not sent again what this Redis may lack.
    pub resending: Vec<String>,
    /// Services that have done so within the last minute, and all of it is delivered.
    pub resent: Vec<String>,
}

/// What a sender sees of the streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Which Redis, and which data.
    pub identity: String,
    /// Redis' clock.
    pub now: Timestamp,
    /// Everything written before is settled, as the relays published last, if any did.
    pub watermark: Option<Timestamp>,
    /// Whether the monitor of any group counts again what comes again.
    pub repeats: Repeats,
}

/// What [`SURVEY`] answers.
type Surveyed = (String, u64, u64, (State, State), Vec<Value>, u64, Vec<String>, Vec<String>);
/// Lag or -1, pending, and the oldest of these or nothing.
type State = (i64, u64, String);

impl Group {
    /// Asks where the group stands, and publishes its watermark for the senders.
    ///
    /// # Errors
    /// When Redis does not answer or refuses, or the group is gone.
    pub async fn survey(&self) -> Result<Survey, StreamError> {
        let (stream, name) = (&self.stream, self.name.as_str());
        let mut command = cmd("EVAL");
        command.arg(format!("{IDENTIFY}{GROUPS}{SURVEY}")).arg(8);
        command.arg(&[stream.epoch(), stream.windows().to_owned(), stream.reports().to_owned()]);
        command.arg(&[stream.suspects(name), stream.watermarks(), stream.dead().to_owned()]);
        command.arg(&[stream.senders(), stream.groups()]);
        command.arg(new_epoch()).arg(name).arg(MOST_ITEMS);
        let surveyed: Surveyed = self.writer.query(&command).await?;
        let (identity, now, watermark, (windows, heartbeats), suspects, letters, resending, resent) =
            surveyed;
        Ok(Survey {
            identity,
            now: Timestamp::from_millis(now),
            watermark: Timestamp::from_millis(watermark),
            windows: state(&windows),
            heartbeats: state(&heartbeats),
            suspects: suspects.into_iter().filter_map(|value| self.suspect(value)).collect(),
            dead_letters: letters,
            resending,
            resent,
        })
    }

    /// Notes an entry that alone makes the monitor fail, so that the watermark goes on without it.
    ///
    /// # Errors
    /// As for [`Group::survey`]; the watermark then waits for the entry.
    pub async fn suspect_entry(
        &self,
        source: Source,
        id: StreamId,
        report: &SuspectReport,
    ) -> Result<(), StreamError> {
        let report = serde_json::to_string(report).unwrap_or_default();
        let mut command = cmd("HSETNX");
        command.arg(self.stream.suspects(&self.name)).arg(field(source, id)).arg(report);
        self.writer.query(&command).await
    }

    /// Other groups that have not read for a day, so that nothing which they lack is deleted.
    ///
    /// # Errors
    /// As for [`Group::survey`].
    pub async fn silent_groups(&self) -> Result<Vec<String>, StreamError> {
        let mut command = cmd("EVAL");
        command
            .arg(format!("{GROUPS}{SILENT}"))
            .arg(2)
            .arg(&[self.stream.windows(), self.stream.reports()]);
        self.writer.query(command.arg(&self.name).arg(SILENT_AFTER_SECONDS)).await
    }

    fn suspect(&self, value: Value) -> Option<Suspect> {
        let (number, id, report): (usize, StreamId, Vec<u8>) =
            FromRedisValue::from_redis_value(value).ok()?;
        let source = *Source::ALL.get(number.checked_sub(1)?)?;
        // A note that cannot be read names no window, but the entry is still a suspect.
        let report = serde_json::from_slice(&report).unwrap_or_else(|error| SuspectReport {
            window_uuid: None,
            slot: None,
            reason: format!("its note cannot be read: {error}"),
            since: id.written_at(),
        });
        Some(Suspect { stream: self.key(source).to_owned(), stream_id: id, report })
    }
}

impl Producer {
    /// Asks which Redis this is, and how far delivery has come. Tells it that a process of a service
    /// is here, and which Redis that has seen to: it has sent again what that may lack, by an instant
    /// of its clock.
    ///
    /// # Errors
    /// When Redis does not answer or refuses.
    pub async fn observe(
        &self,
        (service, process): (&str, &str),
        (seen_to, done_at): (&str, Timestamp),
    ) -> Result<Observation, StreamError> {
        let mut command = cmd("EVAL");
        command.arg(format!("{IDENTIFY}{OBSERVE}")).arg(4);
        command.arg(&[self.stream.epoch(), self.stream.watermarks(), self.stream.senders()]);
        command.arg(self.stream.repeats());
        command.arg(new_epoch()).arg(format!("{service}/{process}")).arg(seen_to);
        // Up, so that the instant is not before the entries of its own millisecond.
        command.arg(done_at.micros().max(0) / 1_000 + i64::from(done_at.micros() > 0));
        let (identity, now, watermark, again): (String, u64, i64, u64) =
            self.link.query(&command).await?;
        let watermark = u64::try_from(watermark).ok().map(Timestamp::from_millis);
        let repeats = if again > 0 { Repeats::CountedAgain } else { Repeats::CountedOnce };
        Ok(Observation { identity, now: Timestamp::from_millis(now), watermark, repeats })
    }
}

/// The name of an entry among the suspects: the number that [`SURVEY`] gives its stream, and its id.
fn field(source: Source, id: StreamId) -> String {
    let number = Source::ALL.iter().position(|other| *other == source).unwrap_or_default() + 1;
    format!("{number} {id}")
}

fn state((lag, pending, oldest): &State) -> StreamState {
    let oldest = oldest.parse().ok().map(StreamId::written_at);
    StreamState { lag: u64::try_from(*lag).ok(), pending: *pending, oldest_pending_at: oldest }
}
