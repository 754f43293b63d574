//! Looks again and again: the totals, and under them the windows, the latest first.
//!
//! A monitor that is away for a while is said to be away, with what it said last, and asked again.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use super::account::Account;
use super::ask::Monitor;
use super::{COULD_NOT_TELL, NONE, Printer, WhichArgs, gather};
use crate::terminal::Screen;
use crate::wire::Timestamp;
use crate::{clock, shutdown};

/// Windows of one picture at the most.
const MOST_WINDOWS: usize = 100;

/// What a look has shown.
struct Look {
    at: Timestamp,
    account: Account,
    text: String,
}

/// Looks until told to stop, or until nobody reads what it prints. Answers the exit code of what was
/// seen last.
///
/// # Errors
/// When signals cannot be listened for, or nothing can be printed.
pub async fn run(
    monitor: &Monitor,
    which: &WhichArgs,
    printer: &Printer,
    interval: Duration,
) -> anyhow::Result<ExitCode> {
    let stop = shutdown::on_signals()?;
    let screen = Screen::open()?;
    let mut last: Option<Look> = None;
    loop {
        let looked = tokio::select! {
            looked = look(monitor, which, printer) => looked,
            () = stop.cancelled() => break,
        };
        let every = humantime::format_duration(interval);
        let picture = match looked {
            Ok(seen) => {
                let picture = format!("{}, every {every}\n{}", seen.at, seen.text);
                last = Some(seen);
                picture
            }
            Err(error) => {
                let now = clock::now();
                let before = last.as_ref().filter(|_| screen.is_in_place());
                let before = before.map_or_else(String::new, |seen| {
                    format!("What it said at {}:\n{}", seen.at, seen.text)
                });
                format!("{now}, every {every}: {error:#}\n\n{before}")
            }
        };
        if !screen.show(&picture)? || !shutdown::sleep(interval, &stop).await {
            break;
        }
    }
    let is_in_place = screen.is_in_place();
    drop(screen);
    if let Some(seen) = last.as_ref().filter(|_| is_in_place) {
        // What the alternate screen has shown is gone with it.
        crate::terminal::print(&format!("{}\n{}", seen.at, printer.style.totals(&seen.account)))?;
    }
    Ok(last.map_or(ExitCode::from(COULD_NOT_TELL), |seen| seen.account.exit_code()))
}

async fn look(monitor: &Monitor, which: &WhichArgs, printer: &Printer) -> anyhow::Result<Look> {
    let mut account = Account::default();
    let (mut windows, mut shown, mut more) = (String::new(), 0, 0_u64);
    let at = clock::now();
    account.is_partial = gather::each(monitor, which, |window| {
        account.add(&window.facts);
        if let Some(text) = printer.window(window) {
            if shown < MOST_WINDOWS {
                shown += 1;
                windows.push_str(&text);
            } else {
                more += 1;
            }
        }
        Ok(())
    })
    .await?;
    if more > 0 {
        // Writing to a string cannot fail.
        let _ = writeln!(windows, "and {more} more windows: --service or --since shows fewer\n");
    }
    let text = if account.windows == 0 && !account.is_partial {
        format!("{NONE}\n\n")
    } else {
        format!("{}\n{windows}", printer.style.totals(&account))
    };
    Ok(Look { at, account, text })
}
