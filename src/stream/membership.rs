//! Being a consumer of a group: that no two processes share a name, and how a group ends.
//!
//! Two consumers of one name would read each other's pending entries and deliver them twice by
//! design. Each therefore holds its name by a key that it renews and that runs out when it dies.

use std::time::Duration;

use redis::{cmd, pipe};

use super::script::GROUPS;
use super::{Group, Link, Source, StreamError, StreamName};

/// Takes or renews a name, unless another process holds it: then answers for how long still, in
/// milliseconds.
const HOLD: &str = r"
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return math.max(redis.call('PTTL', KEYS[1]), 0) end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return -1
";

/// Lets a name go, if this process holds it.
const LET_GO: &str = r"
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
";

/// When any consumer of a group last asked for anything, in milliseconds ago; -1 without consumers,
/// -2 without the group.
const IDLE: &str = r"
local found, idle = false, -1
for _, stream in ipairs(KEYS) do
  for _, facts in ipairs(groups_of(stream)) do
    if facts['name'] == ARGV[1] then
      found = true
      for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, ARGV[1])) do
        if idle < 0 or consumer[6] < idle then idle = consumer[6] end
      end
    end
  end
end
return found and idle or -2
";

impl Group {
    /// Takes or renews this consumer's name for a process. Answers how long another process still
    /// holds it, if one does.
    ///
    /// # Errors
    /// When Redis does not answer or refuses.
    pub async fn hold_name(
        &self,
        process: &str,
        time: Duration,
    ) -> Result<Option<Duration>, StreamError> {
        let mut command = cmd("EVAL");
        command.arg(HOLD).arg(1).arg(self.stream.consumer(&self.name, &self.consumer));
        command.arg(process).arg(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let left_ms: i64 = self.writer.query(&command).await?;
        Ok(u64::try_from(left_ms).ok().map(Duration::from_millis))
    }

    /// Lets this consumer's name go.
    ///
    /// # Errors
    /// As for [`Group::hold_name`]; it then runs out.
    pub async fn let_name_go(&self, process: &str) -> Result<(), StreamError> {
        let mut command = cmd("EVAL");
        command.arg(LET_GO).arg(1).arg(self.stream.consumer(&self.name, &self.consumer));
        self.writer.query(command.arg(process)).await
    }
}

/// How a group came to be looked at by an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// There is no such group.
    Unknown,
    /// It has no consumers.
    Deserted,
    /// A consumer asked for something so long ago.
    Ago(Duration),
}

/// Whether a group is still in use.
///
/// # Errors
/// When Redis does not answer or refuses.
pub async fn activity(
    link: &Link,
    stream: &StreamName,
    group: &str,
) -> Result<Activity, StreamError> {
    let mut command = cmd("EVAL");
    command.arg(format!("{GROUPS}{IDLE}")).arg(2).arg(&[stream.windows(), stream.reports(), group]);
    let idle_ms: i64 = link.query(&command).await?;
    Ok(match (idle_ms, u64::try_from(idle_ms)) {
        (_, Ok(millis)) => Activity::Ago(Duration::from_millis(millis)),
        (-1, _) => Activity::Deserted,
        _ => Activity::Unknown,
    })
}

/// Destroys a group and everything that is kept for it.
///
/// # Errors
/// When it is not known to be done; ask again.
pub async fn destroy(link: &Link, stream: &StreamName, group: &str) -> Result<(), StreamError> {
    let mut commands = pipe();
    for source in Source::ALL {
        commands.cmd("XGROUP").arg(&["DESTROY", stream.key(source), group]).ignore();
    }
    for key in [stream.watermarks(), stream.groups(), stream.repeats()] {
        commands.cmd("HDEL").arg(key).arg(group).ignore();
    }
    commands.cmd("DEL").arg(stream.suspects(group)).arg(stream.told(group)).ignore();
    commands.cmd("DEL").arg(&stream.turn(group)).ignore();
    link.query_all(&commands).await
}
