//! What relays agree on before an original monitor, which counts what it gets twice twice and
//! loses a count when it gets two at a time: whose *turn* it is to send, and that the senders must
//! not send anything again for good measure.

use std::time::Duration;

use redis::cmd;

use super::{Group, StreamError};

/// Takes or renews a turn, unless it is another's: then notes for a moment that somebody wants it. One
/// without an end is nobody's: relays never write it so. Also when Redis has no memory left: what is not delivered is not deleted either.
const TAKE: &str = r"#!lua flags=allow-oom
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and redis.call('PTTL', KEYS[1]) >= 0 then
  redis.call('SET', KEYS[2], 1, 'PX', ARGV[3])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
return 1
";

/// Ends a turn, if it is this process'. Answers whether somebody else wants it.
const END: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
return redis.call('EXISTS', KEYS[2])
";

/// Notes by Redis' clock, in seconds, when a group last had a monitor that counts repeats.
const NOTE: &str = r"
return redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1])
";

/// How long it is noted that somebody wants a turn: longer than it takes to ask again.
const WANTED_MS: u32 = 200;

/// Whether a monitor knows a heartbeat that it has got before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// It counts each once, however often it comes.
    CountedOnce,
    /// It counts it each time.
    CountedAgain,
}

impl Group {
    /// Takes or renews the turn for a process, for so long. Answers false while it is another's.
    ///
    /// # Errors
    /// When Redis does not answer or refuses.
    pub async fn take_turn(&self, process: &str, time: Duration) -> Result<bool, StreamError> {
        let mut command = cmd("EVAL");
        command.arg(TAKE).arg(2).arg(&self.stream.turn(&self.name)).arg(process);
        command.arg(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).arg(WANTED_MS);
        self.writer.query(&command).await
    }

    /// Ends the turn of a process. Answers whether somebody else wants it.
    ///
    /// # Errors
    /// As for [`Group::take_turn`]; it then runs out.
    pub async fn end_turn(&self, process: &str) -> Result<bool, StreamError> {
        let mut command = cmd("EVAL");
        command.arg(END).arg(2).arg(&self.stream.turn(&self.name)).arg(process);
        self.writer.query(&command).await
    }

    /// Tells the senders what the group's monitor makes of a heartbeat that comes again.
    ///
    /// # Errors
    /// As for [`Group::take_turn`].
    pub async fn publish_repeats(&self, repeats: Repeats) -> Result<(), StreamError> {
        let key = self.stream.repeats();
        match repeats {
            Repeats::CountedAgain => {
                let mut command = cmd("EVAL");
                self.writer.query(command.arg(NOTE).arg(1).arg(key).arg(&self.name)).await
            }
            Repeats::CountedOnce => self.writer.query(cmd("HDEL").arg(key).arg(&self.name)).await,
        }
    }
}
