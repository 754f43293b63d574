//! Nothing that a run has started outlives it, not even if the run itself is killed.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Mutex;

/// A child that ends what we started when this process ends, however it ends: its input closes
/// then. It is told of every process that starts and of every one that is gone.
pub struct Leash {
    input: Mutex<Option<ChildStdin>>,
    shell: std::process::Child,
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.input.lock().unwrap().take();
        self.shell.wait().ok();
    }
}

impl Leash {
    const SCRIPT: &str = r#"
        held=" "
        while read -r sign pid; do
            case $sign in
                +) held="$held$pid " ;;
                -) held="${held%% $pid *} ${held#* $pid }" ;;
            esac
        done
        kill -KILL $held 2> /dev/null"#;

    /// A leash that holds nothing yet.
    pub fn new() -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", Self::SCRIPT]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = command.spawn().expect("sh");
        Self { input: Mutex::new(shell.stdin.take()), shell }
    }

    /// Ends this process when we end.
    pub fn hold(&self, pid: u32) {
        self.tell('+', pid);
    }

    /// Forgets a process that is gone, before its number becomes another's.
    pub fn release(&self, pid: u32) {
        self.tell('-', pid);
    }

    fn tell(&self, sign: char, pid: u32) {
        let mut input = self.input.lock().unwrap();
        let input = input.as_mut().expect("its input");
        writeln!(input, "{sign} {pid}").and_then(|()| input.flush()).expect("the leash holds");
    }
}
