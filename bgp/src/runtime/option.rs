//! Socket options that no safe wrapper offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `setsockopt`: `value` as the kernel lays it out.
#[expect(unsafe_code, reason = "no safe wrapper of setsockopt takes any option")]
pub(super) fn set(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open as long as `socket` is borrowed, and the kernel reads `length` bytes of `value`, which
    // is that long, and keeps no reference to them.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
