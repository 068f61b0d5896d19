//! Paths on the host of the agent, which has another working directory.

/// The absolute path that `text` means here.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let path = std::path::absolute(text).map_err(|error| error.to_string())?;
    let path = path.into_os_string().into_string();
    path.map_err(|_| "it lies in a directory whose name is not UTF-8".to_owned())
}
