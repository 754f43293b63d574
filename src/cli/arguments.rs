//! Reading the command line and the environment.
//!
//! A variable that is empty counts as not set, as compose files leave it. A complaint about a value
//! says which variable it came from, and repeats no address, whatever it is a complaint about.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use super::Cli;

/// Reads the command line of this process.
///
/// # Errors
/// What is wrong with it, or the help that was asked for; it prints itself.
pub fn read() -> Result<Cli, Complaint> {
    let words: Vec<String> =
        env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut command = without_empty_variables(Cli::command());
    // Its arguments cannot be named before.
    command.build();
    let parsed = command.clone().try_get_matches();
    parsed
        .and_then(|matches: ArgMatches| Cli::from_arg_matches(&matches))
        .map_err(|error| Complaint::new(error, &command, &words))
}

/// The same command, for which variables that are empty are not set.
fn without_empty_variables(command: Command) -> Command {
    let names: Vec<String> =
        command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let command = command.mut_args(|argument| {
        let is_empty =
            argument.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty());
        if is_empty { argument.env(None::<&'static str>) } else { argument }
    });
    names
        .into_iter()
        .fold(command, |command, name| command.mut_subcommand(name, without_empty_variables))
}

/// What is wrong with the command line.
#[derive(Debug)]
pub struct Complaint {
    error: clap::Error,
    said: Option<String>,
}

impl Complaint {
    fn new(error: clap::Error, command: &Command, words: &[String]) -> Self {
        if !error.use_stderr() {
            return Self { error, said: None };
        }
        let mut said = error.render().to_string();
        let command = named(command, words);
        for address in addresses(command, words) {
            said = said.replace(&address, "***");
        }
        if let Some(variable) = variable(&error, command, words) {
            said = format!(
                "{}\n\nThe value is that of the environment variable {variable}.\n",
                said.trim_end()
            );
        }
        Self { error, said: Some(said) }
    }

    /// Prints it, and says what to end with.
    #[must_use]
    pub fn exit(&self) -> ExitCode {
        match &self.said {
            // Nobody may be there to read it.
            Some(said) => drop(write!(io::stderr(), "{said}")),
            None => drop(self.error.print()),
        }
        ExitCode::from(u8::try_from(self.error.exit_code()).unwrap_or(1))
    }
}

/// The command that the words name.
fn named<'c>(command: &'c Command, words: &[String]) -> &'c Command {
    let words = words.iter().skip(1);
    words.fold(command, |command, word| command.find_subcommand(word).unwrap_or(command))
}

/// Everything that may be an address, of the words and of the command's variables; the longest first,
/// for one may be a part of another.
fn addresses(command: &Command, words: &[String]) -> Vec<String> {
    let variables = command.get_arguments().filter_map(|argument| argument.get_env());
    let values = variables.filter_map(env::var_os);
    let mut addresses: Vec<String> =
        values.map(|value| value.to_string_lossy().into_owned()).collect();
    addresses.extend(words.iter().cloned());
    let parts = words.iter().filter_map(|word| word.split_once('='));
    addresses.extend(parts.map(|(_, value)| value.to_owned()));
    addresses.retain(|text| text.contains("://") || text.contains('@'));
    addresses.sort_by_key(|text| std::cmp::Reverse(text.len()));
    addresses
}

/// The variable that a value came from which was complained of.
fn variable(error: &clap::Error, command: &Command, words: &[String]) -> Option<String> {
    let Some(ContextValue::String(complained)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let argument = command.get_arguments().find(|argument| argument.to_string() == *complained)?;
    let flag = argument.get_long().map(|long| format!("--{long}"));
    let is_given = |flag: &String| {
        words.iter().any(|word| word == flag || word.starts_with(&format!("{flag}=")))
    };
    let variable = argument.get_env()?;
    let is_from_variable = env::var_os(variable).is_some() && !flag.as_ref().is_some_and(is_given);
    is_from_variable.then(|| variable.to_string_lossy().into_owned())
}
