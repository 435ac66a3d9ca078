//! Readers that leave.

use std::io;
use std::process;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Ends the program once nobody can read what it writes to stdout, whatever it is busy with: a closed pipe, a closed terminal.
/// Like a write that finds no reader, this is no failure.
pub fn end_with_reader() {
    // Without this thread, the next write finds out.
    let _ = thread::Builder::new().name("reader".into()).spawn(|| {
        let stdout = io::stdout();
        // No event is asked for: what is left are errors, among them that the other end is closed.
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        while poll(&mut watched, None) == Err(Errno::INTR) {}
        if watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            process::exit(0);
        }
    });
}
