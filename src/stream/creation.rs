//! Creating a group where it is missing, and knowing what that means.
//!
//! A group that is missing is no proof of a loss: a relay that comes to a stream for the first time
//! creates one, and so does the next after somebody destroyed it. So each group is *noted* with how
//! many entries its streams had been given, which the survey keeps current. A stream that is gone, or
//! that was given fewer than are noted, has lost entries: only then is the epoch renewed, so that the
//! senders send again. Whoever empties Redis takes the epoch along, and the note as well.

use redis::cmd;

use super::script::{GROUPS, new_epoch};
use super::{Group, StreamError};
use crate::wire::Timestamp;

/// Creates the group where it is missing, from the first entry on. Looks first: a Redis that has no
/// memory left refuses a creation, and what exists needs none.
///
/// A group that is not noted comes to streams which others may have read before it. What they had
/// read may be of windows that were over before this group came: the *missed* instant, in
/// milliseconds, up to which heartbeats may have gone to them. If the group was there on the
/// heartbeats' stream alone, that is the last which it has read. If it was not, and entries are
/// deleted, it is all before the first that is left; else nothing. On both without a note it was
/// created by an older relay, which has missed nothing.
///
/// KEYS: the two streams, the epoch, the groups. ARGV: the group, a new epoch. RETURNS: 0 if nothing
/// was missing, 1 if it is new, 2 if it was gone without loss, 3 if entries are lost; and the missed
/// instant.
const CREATE: &str = r"
local group = ARGV[1]
local note = redis.call('HGET', KEYS[4], group)
local missed, windows, reports = string.match(note or '', '^(%d+) (%d+) (%d+)$')
local noted = {tonumber(windows), tonumber(reports)}
local missing, is_lost = {}, false
for number = 1, 2 do
  if not group_of(KEYS[number], group) then
    missing[#missing + 1] = KEYS[number]
    local added = facts_of(KEYS[number])['entries-added'] or -1
    if missed and added < noted[number] then is_lost = true end
  end
end
local function millis(id) return tonumber(string.match(id, '%d+')) end
local function missed_until()
  local facts, stream = group_of(KEYS[2], group), facts_of(KEYS[2])
  if facts then return #missing > 0 and millis(facts['last-delivered-id']) or 0 end
  if not stream['length'] or stream['entries-added'] <= stream['length'] then return 0 end
  if not stream['first-entry'] then return millis(stream['last-generated-id']) end
  return math.max(millis(stream['first-entry'][1]) - 1, millis(stream['max-deleted-entry-id']))
end
local how = 0
if #missing > 0 then how = is_lost and 3 or missed and 2 or 1 end
-- Whoever writes a stream chooses its ids: one that is ahead of the clock counts as now.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
missed = string.format('%.0f', math.min(tonumber(missed) or missed_until(), now))
for _, stream in ipairs(missing) do
  redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
end
if is_lost then redis.call('SET', KEYS[3], ARGV[2]) end
-- Where nothing is missing, a Redis without memory may refuse it: then the survey notes the group.
if how > 0 or not note then
  redis.pcall('HSET', KEYS[4], group, missed .. ' ' .. added_to(KEYS[1]) .. ' ' .. added_to(KEYS[2]))
end
return {how, tonumber(missed)}
";

/// How a group was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// It was there on both streams.
    Found,
    /// Nobody knew of it.
    New,
    /// It was known and gone, and every entry is still there.
    Again,
    /// It was known and gone, and entries with it: the senders are told to send them again.
    AfterLoss,
}

/// What came of making sure that a group exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// How it was found.
    pub how: Creation,
    /// Heartbeats of the time before may have been read by others before the group existed.
    pub missed_until: Timestamp,
}

impl Group {
    /// Makes sure that the group exists on both streams, from their first entry on. If entries are
    /// lost, the senders learn it in the same step.
    ///
    /// # Errors
    /// When Redis does not answer or refuses.
    pub async fn create(&self) -> Result<Created, StreamError> {
        let mut command = cmd("EVAL");
        command.arg(format!("{GROUPS}{CREATE}")).arg(4);
        command.arg(&[self.stream.windows(), self.stream.reports()]);
        command.arg(self.stream.epoch()).arg(self.stream.groups());
        command.arg(&self.name).arg(new_epoch());
        let (how, missed_until): (u32, u64) = self.writer.query(&command).await?;
        let how = match how {
            0 => Creation::Found,
            1 => Creation::New,
            2 => Creation::Again,
            _ => Creation::AfterLoss,
        };
        Ok(Created { how, missed_until: Timestamp::from_millis(missed_until) })
    }
}
