//! What people are told when load is shed, and when that has ended.

use weir_resilience::Time;
use weir_resilience::shed::Transition;

use crate::snapshot::Snapshot;

/// Logs what has started and what has stopped since the last look.
pub(crate) fn tell(snapshot: &Snapshot, now: Time) {
    for of in snapshot.sheds() {
        let (service, endpoint, shadow) = (of.service, of.endpoint, of.shadow);
        match of.shed.observe(now) {
            Some(Transition::Started(refused)) => tracing::warn!(
                %service, %endpoint, shadow, reason = %refused, "load shedding started"
            ),
            Some(Transition::Stopped { lasted }) => tracing::info!(
                %service, %endpoint, shadow, ?lasted, "load shedding stopped"
            ),
            None => {}
        }
    }
}
