//! Reading files is work for threads that may block.

use std::fmt::Display;

use axum::http::StatusCode;

use super::routes::Problem;

/// Reads where nobody else has to wait for it. `title` is what is wrong when that fails.
pub(super) async fn blocking<T, E>(
    title: &'static str,
    read: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Problem>
where
    T: Send + 'static,
    E: Display + Send + 'static,
{
    let detail = match tokio::task::spawn_blocking(read).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Problem { status: StatusCode::INTERNAL_SERVER_ERROR, title, detail })
}
