//! Migrations are embedded when the crate is built: build again when one is added.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
