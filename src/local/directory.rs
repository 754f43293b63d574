//! The data directory: its lock, its password and where its sockets are.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{env, process};

use anyhow::{Context, bail};
use rand::distr::{Alphanumeric, SampleString};
use secrecy::SecretString;

/// Longest path of a socket in bytes. The kernel's limit is 107, and servers append to it.
const LONGEST_SOCKET_PATH: usize = 100;
/// Sockets, and what servers leave beside them.
const SOCKET_FILES: [&str; 3] = [REDIS_SOCKET, MYSQL_SOCKET, "mysql.sock.lock"];
const REDIS_SOCKET: &str = "redis.sock";
const MYSQL_SOCKET: &str = "mysql.sock";

/// A data directory that this process, and no other, uses.
pub(super) struct Directory {
    root: PathBuf,
    sockets: PathBuf,
    password: SecretString,
    /// Held by keeping the file open. Children do not inherit it.
    _lock: File,
}

impl Directory {
    /// Creates the directory if need be and locks it.
    ///
    /// # Errors
    /// It is in use, cannot be written, or its name cannot be written to a configuration file.
    pub(super) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let root = create(data_dir)
            .with_context(|| format!("creating the data directory {}", data_dir.display()))?;
        check_name(&root)?;
        let lock = lock(&root)?;
        let password = password(&root.join("password")).context("reading the servers' password")?;
        let sockets = sockets(&root.join("run")).context("choosing a place for sockets")?;
        Ok(Self { root, sockets, password, _lock: lock })
    }

    /// A path inside the directory.
    pub(super) fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside)
    }

    /// The directory of sockets, pid files, logs and configuration.
    pub(super) fn run(&self) -> PathBuf {
        self.path("run")
    }

    pub(super) fn redis_socket(&self) -> PathBuf {
        self.sockets.join(REDIS_SOCKET)
    }

    pub(super) fn mysql_socket(&self) -> PathBuf {
        self.sockets.join(MYSQL_SOCKET)
    }

    /// The password of every account: letters and digits only, so that it needs no quoting.
    pub(super) fn password(&self) -> &SecretString {
        &self.password
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.sockets != self.run() {
            remove_sockets(&self.sockets);
        }
    }
}

/// Creates a directory, and those above it, that only its owner may enter.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file that only its owner may read, entirely or not at all.
pub(super) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let unfinished = path.with_added_extension("new");
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Escapes a path for an address. The characters that stay stand for themselves in every part.
pub(super) fn percent_encoded(path: &Path) -> String {
    use std::fmt::Write;
    let mut encoded = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(byte) {
            encoded.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn create(data_dir: &Path) -> io::Result<PathBuf> {
    create_private(data_dir)?;
    let root = data_dir.canonicalize()?;
    for part in ["redis", "mysql", "run"] {
        create_private(&root.join(part))?;
    }
    Ok(root)
}

/// Configuration files have no common way to escape these, and lists of paths none for colons.
fn check_name(root: &Path) -> anyhow::Result<()> {
    let fits = |name: &str| !name.contains(|c: char| c.is_control() || "\"'\\:".contains(c));
    if !root.to_str().is_some_and(fits) {
        bail!(
            "the name of the data directory {} has quotes, backslashes, colons or control \
             characters, or is no UTF-8: choose another",
            root.display()
        );
    }
    Ok(())
}

fn lock(root: &Path) -> anyhow::Result<File> {
    let path = root.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => {
            let owner = fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "the data directory {} is in use by process {}: stop that one first, or use \
                 another data directory",
                root.display(),
                owner.trim_end()
            );
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
    }
    file.set_len(0)?;
    writeln!(file, "{}", process::id())?;
    Ok(file)
}

fn password(path: &Path) -> anyhow::Result<SecretString> {
    match fs::read_to_string(path) {
        Ok(text) if is_plain(text.trim_end()) => Ok(text.trim_end().into()),
        Ok(_) => bail!(
            "{} should hold letters and digits only: delete it, and a new one is made",
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let password = Alphanumeric.sample_string(&mut rand::rng(), 32);
            write_private(path, &password)?;
            Ok(password.into())
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn is_plain(password: &str) -> bool {
    !password.is_empty() && password.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The directory for sockets: `run`, or a fresh one with a short name when that of `run` is too
/// long. Which one it was is noted in `run`, so that the next start can remove it.
fn sockets(run: &Path) -> anyhow::Result<PathBuf> {
    let note = run.join("SOCKETS");
    if let Ok(former) = fs::read_to_string(&note) {
        remove_sockets(Path::new(&former));
        fs::remove_file(&note)?;
    }
    if fits_socket(run) {
        return Ok(run.to_owned());
    }
    let fresh = short_directory(&env::temp_dir());
    write_private(&note, &fresh.to_string_lossy())?;
    DirBuilder::new().mode(0o700).create(&fresh)?;
    Ok(fresh)
}

fn fits_socket(directory: &Path) -> bool {
    directory.join(REDIS_SOCKET).as_os_str().len() <= LONGEST_SOCKET_PATH
}

/// A name that is not taken, below `temporary` or, if that is too long itself, below `/tmp`.
fn short_directory(temporary: &Path) -> PathBuf {
    let name = format!("heartbeat-{}", Alphanumeric.sample_string(&mut rand::rng(), 12));
    let wanted = temporary.join(&name);
    if fits_socket(&wanted) && check_name(&wanted).is_ok() {
        return wanted;
    }
    Path::new("/tmp").join(name)
}

/// Removes what a directory of sockets may hold, and it too if nothing else is there.
fn remove_sockets(directory: &Path) {
    for name in SOCKET_FILES {
        fs::remove_file(directory.join(name)).ok();
    }
    fs::remove_dir(directory).ok();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_directory_is_private_and_keeps_its_password() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("data");
        let directory = Directory::open(&root).unwrap();
        let password = directory.password().expose_secret().to_owned();
        assert_eq!(password.len(), 32);
        assert_eq!((mode(&root), mode(&root.join("password"))), (0o700, 0o600));
        drop(directory);
        let again = Directory::open(&root).unwrap();
        assert_eq!(again.password().expose_secret(), password);
    }

    #[test]
    fn a_directory_in_use_is_refused_and_its_user_named() {
        let parent = tempfile::tempdir().unwrap();
        let _first = Directory::open(parent.path()).unwrap();
        let refusal = Directory::open(parent.path()).err().unwrap().to_string();
        assert!(refusal.contains(&format!("in use by process {}", process::id())), "{refusal}");
    }

    #[test]
    fn a_password_that_would_need_quoting_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("password"), "it's\n").unwrap();
        assert!(Directory::open(parent.path()).is_err());
    }

    #[test]
    fn sockets_of_a_deep_directory_move_to_a_short_one_that_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let shallow = Directory::open(&parent.path().join("shallow")).unwrap();
        assert!(shallow.redis_socket().starts_with(parent.path()));

        let root = parent.path().join("deep".repeat(30));
        let deep = Directory::open(&root).unwrap();
        let sockets = deep.sockets.clone();
        assert!(deep.mysql_socket().as_os_str().len() <= LONGEST_SOCKET_PATH);
        assert_eq!(mode(&sockets), 0o700);
        drop(deep);
        assert!(!sockets.exists());
    }

    #[test]
    fn the_next_start_removes_the_sockets_of_a_killed_one() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join("left");
        let root = parent.path().join("root");
        fs::create_dir_all(&left).unwrap();
        fs::create_dir_all(root.join("run")).unwrap();
        fs::write(left.join(REDIS_SOCKET), "").unwrap();
        fs::write(root.join("run/SOCKETS"), left.to_str().unwrap()).unwrap();
        Directory::open(&root).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn a_long_temporary_directory_gives_way_to_tmp() {
        let short = short_directory(Path::new("/var/tmp"));
        assert!(short.starts_with("/var/tmp"));
        let short = short_directory(Path::new(&format!("/{}", "x".repeat(90))));
        assert!(short.starts_with("/tmp"));
    }

    #[test]
    fn names_that_no_configuration_file_can_hold_are_refused() {
        for name in ["plain", "with space", "with#sign", "ünïcode"] {
            assert!(check_name(Path::new(name)).is_ok(), "{name}");
        }
        for name in ["quo\"te", "quo'te", "back\\slash", "new\nline", "co:lon"] {
            assert!(check_name(Path::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn paths_are_escaped_for_addresses() {
        assert_eq!(percent_encoded(Path::new("/a-b_c.d~/e f?&ü")), "/a-b_c.d~/e%20f%3F%26%C3%BC");
    }
}
