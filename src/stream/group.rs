//! Reading the streams as one consumer of a group: every entry is read by some consumer, stays
//! pending until it is acknowledged, and is taken over by another when its reader dies.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, RedisError, Value, cmd, pipe};
use uuid::Uuid;

use super::script::{GROUPS, new_epoch};
use super::{Link, StreamError, StreamId, StreamName};
use crate::config::RedisUrl;
use crate::wire::Timestamp;

/// Moves an entry to the dead letters and acknowledges it, both or neither: what fails, fails before
/// the acknowledgement. Copying happens inside Redis, so that a body of any size does not travel.
/// Does nothing if another consumer has already acknowledged the entry. `attempts` is how often the
/// stream gave the entry to a consumer. Every fact is written, known or not: what follows them are
/// the fields of the message.
const DEAD_LETTER: &str = r"
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)[1]
if not held then return 0 end
local letter = {'stream', KEYS[1], 'id', ARGV[2], 'reason', ARGV[3], 'at', ARGV[4], 'consumer', ARGV[5],
  'attempts', held[4], 'first_at', ARGV[6], 'window', ARGV[7], 'slot', ARGV[8]}
local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
if found[1] then
  for i = 1, math.min(#found[1][2], 200) do letter[#letter + 1] = found[1][2][i] end
end
redis.call('XADD', KEYS[2], '*', unpack(letter))
return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
";

/// Takes over what nobody has renewed for a time. Where entries turn out to be deleted, the epoch is
/// renewed in the same step, so that the senders send them again.
const CLAIM: &str = r"
local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5])
if #claimed[3] > 0 then redis.call('SET', KEYS[2], ARGV[6]) end
return claimed
";

/// Acknowledges pending entries that are deleted, and renews the epoch.
const GIVE_UP: &str = r"
for i = 3, #ARGV do redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) end
redis.call('SET', KEYS[2], ARGV[2])
";

/// Removes a consumer that holds nothing. One with pending entries stays: removing it would lose
/// them.
const FORGET_IF_EMPTY: &str = r"
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  if consumer[2] == ARGV[2] and consumer[4] == 0 then
    return redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
  end
end
return 0
";

/// Deletes what every group has acknowledged: all that lies before the oldest entry which some group
/// has pending, or else the last that it has read. Nothing unless our own group is among them, for
/// it may have been lost and has then read nothing.
const TRIM: &str = r"
local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local function before(a, b)
  local am, as = string.match(a, '(%d+)-(%d+)')
  local bm, bs = string.match(b, '(%d+)-(%d+)')
  if am ~= bm then return less(am, bm) end
  return less(as, bs)
end
local floor, ours
for _, facts in ipairs(groups_of(KEYS[1])) do
  ours = ours or facts['name'] == ARGV[1]
  local oldest = oldest_pending(KEYS[1], facts) or facts['last-delivered-id']
  if not floor or before(oldest, floor) then floor = oldest end
end
if not ours then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', '=', floor)
";

/// An idle time that makes an entry claimable by anyone at once, in milliseconds.
const ANY_LEASE_IS_OVER_MS: u64 = 24 * 3_600 * 1_000;

/// Which of the two streams an entry is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Announcements of windows. First, because a window should be known before its heartbeats.
    Windows,
    /// Heartbeats.
    Heartbeats,
}

impl Source {
    /// Both streams, announcements first.
    pub const ALL: [Self; 2] = [Self::Windows, Self::Heartbeats];
}

/// One entry that this consumer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The stream it is from.
    pub source: Source,
    /// Its id there.
    pub id: StreamId,
    /// The field `payload`; none if the entry has no such field.
    pub payload: Option<Vec<u8>>,
    /// Whether somebody has deleted it from the stream: its content is lost.
    pub is_deleted: bool,
}

impl Entry {
    /// Size of the payload, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Vec::len)
    }
}

/// What a relay writes on a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Why the message was set aside.
    pub reason: String,
    /// When the relay that did so tried it first.
    pub first_at: Timestamp,
    /// When it was set aside.
    pub at: Timestamp,
    /// The window that the message belongs to, if it can be read.
    pub window_uuid: Option<Uuid>,
    /// The slot, if it names one.
    pub slot: Option<i64>,
}

/// What a claim brought.
#[derive(Debug)]
pub struct Claimed {
    /// Entries whose consumer had let its lease run out; they are this consumer's now.
    pub entries: Vec<Entry>,
    /// Pending entries that somebody deleted from the stream: their content is lost, and the senders
    /// are told to send it again.
    pub deleted: usize,
    /// Where to go on, or none when the whole list was seen.
    pub next: Option<String>,
}

/// The names and values of an entry.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// One consumer of the group on both streams.
#[derive(Debug)]
pub struct Group {
    reader: Link,
    pub(super) writer: Arc<Link>,
    pub(super) stream: StreamName,
    pub(super) name: String,
    pub(super) consumer: String,
    block: Duration,
}

impl Group {
    /// A consumer whose reads wait up to `block` for something new. `writer` carries everything
    /// that does not block.
    ///
    /// # Errors
    /// An address that Redis' client cannot use.
    pub fn new(
        url: &RedisUrl,
        writer: Arc<Link>,
        stream: StreamName,
        (name, consumer): (String, String),
        block: Duration,
    ) -> anyhow::Result<Self> {
        let reader = Link::with_blocking(url, block)?;
        Ok(Self { reader, writer, stream, name, consumer, block })
    }

    /// Up to `count` entries per stream that no consumer has read; waits for some.
    ///
    /// Never cancel this: Redis would deliver to a reader that is gone. After an error, read
    /// [what is pending](Self::read_own) first.
    ///
    /// # Errors
    /// When Redis does not answer or refuses, or the group is gone.
    pub async fn read_new(&self, count: usize) -> Result<Vec<Entry>, StreamError> {
        let mut command = self.read_command(count);
        command.arg("BLOCK").arg(u64::try_from(self.block.as_millis()).unwrap_or(u64::MAX));
        self.read(command, [">", ">"]).await
    }

    /// Up to `count` entries per stream that this consumer has read and not acknowledged, beyond
    /// the given ids. Entries that somebody deleted meanwhile have no payload.
    ///
    /// # Errors
    /// As for [`Group::read_new`].
    pub async fn read_own(
        &self,
        count: usize,
        after: [StreamId; 2],
    ) -> Result<Vec<Entry>, StreamError> {
        let [windows, heartbeats] = after.map(|id| id.to_string());
        self.read(self.read_command(count), [&windows, &heartbeats]).await
    }

    /// Acknowledges entries that the monitor has committed.
    ///
    /// # Errors
    /// When it is not known to be done; ask again.
    pub async fn acknowledge(&self, source: Source, ids: &[StreamId]) -> Result<(), StreamError> {
        let mut command = cmd("XACK");
        command.arg(self.key(source)).arg(&self.name);
        self.writer.query(with_ids(&mut command, ids)).await
    }

    /// Moves an entry to the dead letters, atomically with its acknowledgement.
    ///
    /// # Errors
    /// When it is not known to be done; ask again.
    pub async fn dead_letter(
        &self,
        source: Source,
        id: StreamId,
        facts: &Facts,
    ) -> Result<(), StreamError> {
        let Facts { reason, first_at, at, window_uuid, slot } = facts;
        let mut command = cmd("EVAL");
        command.arg(DEAD_LETTER).arg(2).arg(self.key(source)).arg(self.stream.dead());
        command.arg(&[&self.name, &id.to_string(), reason, &at.to_string(), &self.consumer]);
        let window = window_uuid.map_or_else(String::new, |uuid| uuid.to_string());
        let slot = slot.map_or_else(String::new, |slot| slot.to_string());
        self.writer.query(command.arg(&[first_at.to_string(), window, slot])).await
    }

    /// Renews the lease on entries that this consumer still works on, without counting it as a
    /// delivery.
    ///
    /// # Errors
    /// When Redis does not answer or refuses, or the group is gone.
    pub async fn renew(&self, source: Source, ids: &[StreamId]) -> Result<(), StreamError> {
        let mut command = cmd("XCLAIM");
        command.arg(&[self.key(source), &self.name, &self.consumer, "0"]);
        with_ids(&mut command, ids).arg("JUSTID");
        self.writer.query::<Value>(&command).await.map(drop)
    }

    /// Hands entries back, so that any consumer may claim them at once.
    ///
    /// # Errors
    /// As for [`Group::renew`].
    pub async fn give_back(&self, source: Source, ids: &[StreamId]) -> Result<(), StreamError> {
        let mut command = cmd("XCLAIM");
        command.arg(&[self.key(source), &self.name, &self.consumer, "0"]);
        with_ids(&mut command, ids).arg("IDLE").arg(ANY_LEASE_IS_OVER_MS).arg("JUSTID");
        self.writer.query::<Value>(&command).await.map(drop)
    }

    /// Takes over up to `count` entries that nobody has renewed for `lease`, from `cursor` on
    /// (`0-0` to start). One call looks at a bounded stretch of the list only: follow
    /// [`Claimed::next`] to its end.
    ///
    /// # Errors
    /// As for [`Group::renew`].
    pub async fn claim(
        &self,
        source: Source,
        lease: Duration,
        cursor: &str,
        count: usize,
    ) -> Result<Claimed, StreamError> {
        let mut command = cmd("EVAL");
        command.arg(CLAIM).arg(2).arg(self.key(source)).arg(self.stream.epoch());
        command.arg(&[&self.name, &self.consumer]);
        command.arg(u64::try_from(lease.as_millis()).unwrap_or(u64::MAX));
        command.arg(cursor).arg(count).arg(new_epoch());
        let (next, entries, deleted): (String, Vec<Value>, Vec<Value>) =
            self.writer.query(&command).await?;
        Ok(Claimed {
            entries: entries.into_iter().filter_map(|value| entry(source, value)).collect(),
            deleted: deleted.len(),
            next: Some(next).filter(|next| next != "0-0"),
        })
    }

    /// Gives up pending entries that somebody has deleted, and tells the senders to send them again.
    ///
    /// # Errors
    /// As for [`Group::renew`].
    pub async fn give_up(&self, source: Source, ids: &[StreamId]) -> Result<(), StreamError> {
        let mut command = cmd("EVAL");
        command.arg(GIVE_UP).arg(2).arg(self.key(source)).arg(self.stream.epoch());
        command.arg(&self.name).arg(new_epoch());
        self.writer.query(with_ids(&mut command, ids)).await
    }

    /// Deletes the entries that every group of the stream has acknowledged, but for the last, so that
    /// the stream does not grow for ever. Answers how many.
    ///
    /// # Errors
    /// As for [`Group::renew`].
    pub async fn trim(&self, source: Source) -> Result<u64, StreamError> {
        let mut command = cmd("EVAL");
        command.arg(format!("{GROUPS}{TRIM}")).arg(1).arg(self.key(source)).arg(&self.name);
        self.writer.query(&command).await
    }

    /// Removes this consumer's name from the group if it holds nothing.
    ///
    /// # Errors
    /// As for [`Group::renew`].
    pub async fn leave(&self) -> Result<(), StreamError> {
        let mut commands = pipe();
        for source in Source::ALL {
            commands
                .cmd("EVAL")
                .arg(FORGET_IF_EMPTY)
                .arg(1)
                .arg(self.key(source))
                .arg(&self.name)
                .arg(&self.consumer);
        }
        self.writer.query_all::<Vec<Value>>(&commands).await.map(drop)
    }

    pub(super) fn key(&self, source: Source) -> &str {
        self.stream.key(source)
    }

    fn read_command(&self, count: usize) -> Cmd {
        let mut command = cmd("XREADGROUP");
        command.arg(&["GROUP", &self.name, &self.consumer, "COUNT"]).arg(count);
        command
    }

    async fn read(&self, mut command: Cmd, from: [&str; 2]) -> Result<Vec<Entry>, StreamError> {
        command.arg("STREAMS").arg(&Source::ALL.map(|source| self.key(source))).arg(&from);
        let streams: Option<Vec<(String, Vec<Value>)>> = self.reader.query(&command).await?;
        let entries = streams.unwrap_or_default().into_iter().flat_map(|(key, values)| {
            let source =
                if key == self.stream.windows() { Source::Windows } else { Source::Heartbeats };
            values.into_iter().filter_map(move |value| entry(source, value))
        });
        Ok(entries.collect())
    }
}

fn with_ids<'c>(command: &'c mut Cmd, ids: &[StreamId]) -> &'c mut Cmd {
    ids.iter().fold(command, |command, id| command.arg(id.to_string()))
}

/// Reads one entry: its id, and its fields or nil if it was deleted.
fn entry(source: Source, value: Value) -> Option<Entry> {
    let (id, fields): (String, Option<Fields>) =
        FromRedisValue::from_redis_value(value).map_err(RedisError::from).ok()?;
    let is_deleted = fields.is_none();
    let payload = fields
        .unwrap_or_default()
        .into_iter()
        .find_map(|(name, body)| (name == b"payload").then_some(body));
    Some(Entry { source, id: id.parse().ok()?, payload, is_deleted })
}
