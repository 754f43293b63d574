//! The operator's command that ends a consumer group which nobody needs any more.
//!
//! A stream keeps every entry until each group has acknowledged it, and a monitor closes windows
//! only when the watermark of each group that ever reported has passed them. A group whose relays
//! are gone for good therefore holds up both, until somebody says that it is forgotten.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::config::{MonitorUrl, StartArgs, StreamArgs, secret};
use crate::http::{self, AdminToken};
use crate::stream::{self, Activity, Link, StreamName};
use crate::terminal;

/// A group that was used so short a time ago is not forgotten.
const IN_USE: Duration = Duration::from_mins(1);
/// How long the monitor may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Options of `forget-group`.
#[derive(Args, Clone, Debug)]
pub struct ForgetGroupArgs {
    /// Consumer group to forget
    #[arg(value_name = "GROUP")]
    pub group: String,

    /// Monitor that should forget it too [default: none]
    #[arg(long, env = "MONITOR_URL", hide_env_values = true, value_name = "URL",
          value_parser = secret::<MonitorUrl>(), requires = "admin_token")]
    pub monitor_url: Option<MonitorUrl>,

    /// Secret that the monitor was started with [default: none]
    #[arg(long, env = "ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN",
          value_parser = secret::<AdminToken>())]
    pub admin_token: Option<AdminToken>,

    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// The streams.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Patience at start.
    #[command(flatten)]
    pub start: StartArgs,
}

/// Runs `forget-group`.
///
/// # Errors
/// A sentence for a person: the group is in use, nobody knows it, or something could not be done.
pub async fn run(args: ForgetGroupArgs) -> anyhow::Result<()> {
    let redis = args.stream.url()?;
    let (name, group) = (&args.stream.stream_name, args.group.as_str());
    let link = Link::new(&redis)?;
    link.wait_until_ready(&redis, args.start.connect_timeout).await?;
    let activity = stream::activity(&link, name, group).await.context("looking for the group")?;
    match activity {
        Activity::Ago(ago) if ago < IN_USE => bail!(
            "a consumer of {group} asked for something {} s ago: stop its relays, and try again when \
             the last has been gone for {} s",
            ago.as_secs(),
            IN_USE.as_secs()
        ),
        Activity::Unknown if args.monitor_url.is_none() => {
            bail!("stream {name} has no group {group}")
        }
        Activity::Unknown | Activity::Deserted | Activity::Ago(_) => (),
    }
    if !args.yes && !is_confirmed(group)? {
        bail!("nothing was forgotten");
    }
    if activity != Activity::Unknown {
        stream::destroy(&link, name, group).await.context("destroying the group")?;
        println!("stream {name} keeps nothing for {group} any more");
    }
    if let (Some(monitor), Some(token)) = (&args.monitor_url, &args.admin_token) {
        forget_at_monitor(monitor, token, name, group).await?;
        println!("the monitor waits for {group} no more");
    }
    Ok(())
}

fn is_confirmed(group: &str) -> anyhow::Result<bool> {
    if !terminal::can_ask() {
        bail!("nobody is here to ask: add --yes to forget {group}");
    }
    terminal::confirm(&format!("What {group} has not read is lost to it for good. Forget it?"))
}

async fn forget_at_monitor(
    monitor: &MonitorUrl,
    token: &AdminToken,
    stream: &StreamName,
    group: &str,
) -> anyhow::Result<()> {
    let client = http::client(TIMEOUT).context("preparing HTTP")?;
    let mut url = monitor.join("pipeline");
    url.query_pairs_mut().append_pair("stream", stream.reports()).append_pair("group", group);
    let request = client.delete(url).header("authorization", token.header());
    let response = request.send().await.map_err(|error| {
        anyhow::anyhow!("the monitor cannot be reached: {}", http::innermost(&error))
    })?;
    let status = response.status();
    if !status.is_success() {
        bail!("the monitor answered {status}: {}", response.text().await.unwrap_or_default());
    }
    Ok(())
}
