//! Work that goes on when whoever asked for it goes away.

use tokio::task::JoinError;

/// The runtime ended before the work did.
#[derive(Debug)]
pub struct RuntimeEnded;

/// Carries work out to its end, also when nobody waits for it any more.
pub async fn to_the_end<T, E>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<RuntimeEnded> + Send + 'static,
{
    match tokio::spawn(work).await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => Err(RuntimeEnded.into()),
    }
}
