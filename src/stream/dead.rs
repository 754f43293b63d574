//! The dead letters: reading, replaying and dropping what the relay set aside.
//!
//! A letter is an entry of `{reports}:dead`. It opens with facts that [`Group::dead_letter`]
//! writes, and goes on with the fields of the message. A letter is never changed, only deleted.
//!
//! [`Group::dead_letter`]: super::Group::dead_letter

use std::sync::Arc;

use redis::{FromRedisValue, ParsingError, RedisError, Value, cmd};
use uuid::Uuid;

use super::{Link, StreamError, StreamId, StreamName};

/// Reads letters, each as its id, its facts, the size of its message, and the message only if it is
/// asked for: a page of letters may hold gigabytes that nobody looks at. The facts are the fields
/// before the first that has another name or a name for the second time.
const READ: &str = r"
local letters, from = {}, ARGV[1]
for i = 1, tonumber(ARGV[3]) do
  local found = redis.call('XRANGE', KEYS[1], from, ARGV[2], 'COUNT', 1)[1]
  if not found then break end
  local open = {stream = true, id = true, reason = true, at = true, consumer = true, attempts = true,
    first_at = true, window = true, slot = true}
  local facts, message, size, fields = {}, {}, 0, found[2]
  local inside = true
  for f = 1, #fields, 2 do
    local name, value = fields[f], fields[f + 1]
    inside = inside and open[name]
    local part = message
    if inside then
      part, open[name] = facts, nil
    else
      size = size + #value
    end
    if inside or ARGV[4] == '1' then
      part[#part + 1] = name
      part[#part + 1] = value
    end
  end
  letters[i] = {found[1], facts, size, message}
  from = '(' .. found[1]
end
return letters
";

/// How many letters there are, and the id of the last one.
const EXTENT: &str = r"
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
return {redis.call('XLEN', KEYS[1]), last and last[1] or false}
";

/// Writes the message of a letter to the stream it is from and deletes the letter, both or neither.
const REPLAY: &str = r"
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not found then return {'gone'} end
local fields, values = found[2], {}
for f = 1, #fields, 2 do
  if values[fields[f]] == nil then values[fields[f]] = fields[f + 1] end
end
if not values.payload then return {'no payload'} end
for k = 2, #KEYS do
  if values.stream == KEYS[k] then
    local id = redis.call('XADD', KEYS[k], '*', 'payload', values.payload)
    redis.call('XDEL', KEYS[1], ARGV[1])
    return {'replayed', id}
  end
end
return {'foreign', values.stream or ''}
";

/// One dead letter. Whatever is no UTF-8 is shown as far as it can be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its own id.
    pub id: StreamId,
    /// Key of the stream that the message is from.
    pub stream: String,
    /// Id of the message there, if it is one.
    pub original_id: Option<StreamId>,
    /// Why it was set aside.
    pub reason: String,
    /// When, by the relay's clock.
    pub at: String,
    /// The relay that did so.
    pub consumer: String,
    /// How often the stream had given the message to a relay; none in letters of older relays.
    pub attempts: Option<u64>,
    /// When that relay tried it first; empty in letters of older relays.
    pub first_at: String,
    /// The window that the message belongs to, if the relay could read it.
    pub window_uuid: Option<Uuid>,
    /// The slot that the message names, if the relay could read it.
    pub slot: Option<i64>,
    /// Size of the message's values, in bytes.
    pub size_bytes: u64,
    /// The message's fields, if they were asked for.
    pub fields: Vec<(String, Vec<u8>)>,
}

impl DeadLetter {
    /// The message's field `payload`, if it was asked for and there is one.
    #[must_use]
    pub fn payload(&self) -> Option<&[u8]> {
        self.fields.iter().find_map(|(name, value)| (name == "payload").then_some(&value[..]))
    }
}

/// What became of a letter that was to be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// The message is an entry of its stream again, with this id, and the letter is deleted.
    As(StreamId),
    /// There is no such letter: it was replayed or dropped before, or never existed.
    Gone,
    /// The message has no `payload`, so it can never be taken. The letter stays.
    WithoutPayload,
    /// The message is from a stream that is not ours; this is its key. The letter stays.
    FromElsewhere(String),
}

/// The dead letters of one stream name.
#[derive(Debug)]
pub struct DeadLetters {
    link: Arc<Link>,
    stream: StreamName,
}

impl DeadLetters {
    /// Those beside a stream.
    #[must_use]
    pub fn new(link: Arc<Link>, stream: StreamName) -> Self {
        Self { link, stream }
    }

    /// How many letters there are, and the id of the last; none if there is no letter.
    ///
    /// # Errors
    /// When Redis does not answer or refuses.
    pub async fn extent(&self) -> Result<(u64, Option<StreamId>), StreamError> {
        let mut command = cmd("EVAL_RO");
        command.arg(EXTENT).arg(1).arg(self.stream.dead());
        self.link.query(&command).await
    }

    /// Up to `count` letters beyond one id and up to another, or to the end, the oldest first and
    /// without their messages.
    ///
    /// # Errors
    /// As for [`DeadLetters::extent`].
    pub async fn page(
        &self,
        after: StreamId,
        until: Option<StreamId>,
        count: usize,
    ) -> Result<Vec<DeadLetter>, StreamError> {
        let until = until.map_or_else(|| "+".to_owned(), |id| id.to_string());
        self.read(&format!("({after}"), &until, count, false).await
    }

    /// One letter with its message.
    ///
    /// # Errors
    /// As for [`DeadLetters::extent`].
    pub async fn find(&self, id: StreamId) -> Result<Option<DeadLetter>, StreamError> {
        let id = id.to_string();
        Ok(self.read(&id, &id, 1, true).await?.pop())
    }

    /// Writes the message of a letter to the stream it is from and deletes the letter, atomically.
    ///
    /// # Errors
    /// When it is not known to be done; ask again: it is never done twice.
    pub async fn replay(&self, id: StreamId) -> Result<Replayed, StreamError> {
        let stream = &self.stream;
        let mut command = cmd("EVAL");
        command.arg(REPLAY).arg(3).arg(&[stream.dead(), stream.reports(), stream.windows()]);
        let answer: Vec<Vec<u8>> = self.link.query(command.arg(id.to_string())).await?;
        let text = |place: usize| answer.get(place).map(|word| lossy(word)).unwrap_or_default();
        Ok(match (text(0).as_str(), text(1).parse()) {
            ("replayed", Ok(id)) => Replayed::As(id),
            ("no payload", _) => Replayed::WithoutPayload,
            ("foreign", _) => Replayed::FromElsewhere(text(1)),
            _ => Replayed::Gone,
        })
    }

    /// Deletes letters. Answers how many of them there were.
    ///
    /// # Errors
    /// When it is not known to be done; ask again.
    pub async fn delete(&self, ids: &[StreamId]) -> Result<u64, StreamError> {
        let mut command = cmd("XDEL");
        command.arg(self.stream.dead());
        ids.iter().fold(&mut command, |command, id| command.arg(id.to_string()));
        self.link.query(&command).await
    }

    /// Up to `count` letters that the relays of a group have not told the monitor of, the oldest
    /// first and without their messages.
    ///
    /// # Errors
    /// As for [`DeadLetters::extent`].
    pub async fn untold(&self, group: &str, count: usize) -> Result<Vec<DeadLetter>, StreamError> {
        let mut command = cmd("GET");
        let told: Option<StreamId> = self.link.query(command.arg(self.stream.told(group))).await?;
        self.page(told.unwrap_or_default(), None, count).await
    }

    /// Notes that the monitor knows of every letter up to this one.
    ///
    /// # Errors
    /// As for [`DeadLetters::extent`]; the monitor is then told again, which is harmless.
    pub async fn told(&self, group: &str, last: StreamId) -> Result<(), StreamError> {
        let mut command = cmd("SET");
        command.arg(self.stream.told(group)).arg(last.to_string());
        self.link.query(&command).await
    }

    async fn read(
        &self,
        first: &str,
        last: &str,
        count: usize,
        whole: bool,
    ) -> Result<Vec<DeadLetter>, StreamError> {
        let mut command = cmd("EVAL_RO");
        command.arg(READ).arg(1).arg(self.stream.dead());
        command.arg(first).arg(last).arg(count).arg(u8::from(whole));
        let letters: Vec<Value> = self.link.query(&command).await?;
        Ok(letters.into_iter().map(letter).collect::<Result<_, _>>().map_err(RedisError::from)?)
    }
}

/// The names and values of a part of a letter.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads what [`READ`] says of one letter.
fn letter(value: Value) -> Result<DeadLetter, ParsingError> {
    let (id, facts, size_bytes, message): (StreamId, Fields, u64, Fields) =
        FromRedisValue::from_redis_value(value)?;
    let fields = message.into_iter().map(|(name, value)| (lossy(&name), value)).collect();
    let mut letter = DeadLetter { id, size_bytes, fields, ..DeadLetter::default() };
    for (name, value) in facts {
        let text = lossy(&value);
        match name.as_slice() {
            b"stream" => letter.stream = text,
            b"id" => letter.original_id = text.parse().ok(),
            b"reason" => letter.reason = text,
            b"at" => letter.at = text,
            b"consumer" => letter.consumer = text,
            b"first_at" => letter.first_at = text,
            b"window" => letter.window_uuid = text.parse().ok(),
            b"slot" => letter.slot = text.parse().ok(),
            _ => letter.attempts = text.parse().ok(),
        }
    }
    Ok(letter)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
