//! Answers of the daemon as sentences.

use crate::api::admin::Changed;

/// `cp01 of kube-apiserver is draining (admin)`
pub fn standing(changed: &Changed) -> String {
    let reason = changed.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    format!("{} of {} is {}{reason}", changed.backend, changed.service, changed.state)
}
