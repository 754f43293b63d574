//! Finding server programs, and asking each what it is.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::process::Command;

use super::identity::{Identity, Product};

/// Where Debian keeps servers, which is not on every user's PATH.
const MORE_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// A server program that can be started.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
}

/// What to look for.
pub(super) struct Wanted<'a> {
    /// A program that the caller chose; then nothing is searched.
    pub(super) given: Option<&'a Path>,
    /// File names, the preferred one first.
    pub(super) names: &'a [&'a str],
    /// Products that will do.
    pub(super) products: &'a [Product],
    /// What to tell a person who has none of them.
    pub(super) advice: &'a str,
}

/// The first program that is one of the wanted products.
///
/// # Errors
/// None is there, with what was found instead and the advice.
pub(super) async fn find(wanted: &Wanted<'_>) -> anyhow::Result<Program> {
    let candidates = match wanted.given {
        Some(path) => vec![path.to_owned()],
        None => wanted.names.iter().flat_map(|name| on_path(name)).collect(),
    };
    let mut seen = String::new();
    for path in candidates {
        match identify(&path).await {
            Ok(identity) if wanted.products.contains(&identity.product) => {
                return Ok(Program { path, identity });
            }
            Ok(identity) => seen = format!("{seen} ({} is {identity})", path.display()),
            Err(error) => seen = format!("{seen} ({error:#})"),
        }
    }
    bail!("found no {}{seen}: {}", wanted.names.join(" or "), wanted.advice)
}

/// Every program of this name on PATH and in the directories of servers, in that order.
pub(super) fn on_path(name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(MORE_DIRECTORIES.map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .filter(|path| path.is_file())
        .collect()
}

async fn identify(path: &Path) -> anyhow::Result<Identity> {
    let output = Command::new(path)
        .arg("--version")
        .output()
        .await
        .with_context(|| format!("{} cannot be run", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Identity::from_version_output(&text)
        .with_context(|| format!("{} --version says {:?}", path.display(), text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_program_is_reported_with_the_package_to_install() {
        let wanted = Wanted {
            given: None,
            names: &["no-such-server"],
            products: &[Product::Redis],
            advice: "install the Debian package redis-server",
        };
        let error = find(&wanted).await.unwrap_err().to_string();
        assert_eq!(error, "found no no-such-server: install the Debian package redis-server");
    }

    #[tokio::test]
    async fn a_program_that_is_something_else_is_named() {
        let wanted = Wanted {
            given: Some(Path::new("/bin/true")),
            names: &["mysqld", "mariadbd"],
            products: &[Product::MySql],
            advice: "install it",
        };
        let error = find(&wanted).await.unwrap_err().to_string();
        assert!(error.contains("/bin/true --version says"), "{error}");
    }
}
