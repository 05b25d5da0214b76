//! Places in bulkheads and under limits: taken, waited for, given back.

use std::sync::Arc;
use std::task::{Context, Poll};

use weir_resilience::Time;
use weir_resilience::bulkhead::{Bulkhead, Entry, Ticket};
use weir_resilience::config::{self, Mode};

use super::Exchange;
use crate::answer::Answer;
use crate::metrics::Counter;

/// A place that a request waits for in a bulkhead's queue.
pub(super) struct Waiting {
    pub(super) machine: Arc<Bulkhead>,
    pub(super) name: Arc<str>,
    pub(super) ticket: Option<Ticket>,
    pub(super) since: Time,
    pub(super) until: Time,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.machine.cancel(ticket);
        }
    }
}

/// A place that a request has; given back on drop.
pub(super) struct Seat(Arc<Bulkhead>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Exchange {
    /// Waits for the place in a bulkhead that the last step asked for. Ready
    /// at once where there is nothing to wait for.
    pub(crate) fn poll_place(
        &mut self,
        now: Time,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Answer>> {
        let Some(waiting) = &mut self.waiting else {
            return Poll::Ready(Ok(()));
        };
        let Some(ticket) = &mut waiting.ticket else {
            return Poll::Ready(Ok(()));
        };
        match waiting.machine.poll_wait(ticket, now, cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                waiting.ticket = None;
                let place = Seat(waiting.machine.clone());
                self.waiting = None;
                let per_try = self.timeouts().and_then(|t| t.per_try);
                match &mut self.current {
                    Some(current) => {
                        current.partition = Some(place);
                        // Time in Weir's own queue is not the destination's.
                        current.started = now;
                        current.deadline = per_try.map(|t| now + t);
                        Poll::Ready(self.enter_limit(now))
                    }
                    None => {
                        self.caller = Some(place);
                        Poll::Ready(Ok(()))
                    }
                }
            }
            Poll::Ready(Err(_)) => {
                waiting.ticket = None;
                let answer = Answer::BulkheadWait {
                    bulkhead: waiting.name.clone(),
                    waited: waiting.until.since(waiting.since),
                };
                self.waiting = None;
                Poll::Ready(Err(answer))
            }
        }
    }

    /// When the wait of [`Exchange::poll_place`] ends by itself.
    pub(crate) fn place_deadline(&self) -> Option<Time> {
        self.waiting.as_ref().map(|w| w.until)
    }

    pub(super) fn take_endpoint(&mut self, endpoint: usize, now: Time) -> Result<(), Answer> {
        let snapshot = self.snapshot.clone();
        let (_, port) = self.place_in(&snapshot);
        let rules = snapshot.at_destination(self.place);
        let rules = rules.of(self.destination_route);
        let seat = match self.destination.map(|d| &rules.destination_bulkheads[d]) {
            None => None,
            Some(b) => self.enter(&b.machines[endpoint], &b.name, &b.config, now)?,
        };
        if let Some(current) = &mut self.current {
            current.partition = seat;
            current.endpoint = endpoint;
        }
        // Who waits for a place in the partition enters the limit after it.
        if self.waiting.is_none()
            && let Err(answer) = self.enter_limit(now)
        {
            if let Some(current) = &mut self.current {
                current.partition = None;
                current.endpoint = usize::MAX;
            }
            return Err(answer);
        }
        port.endpoints[endpoint].load.begin();
        Ok(())
    }

    /// The last things that stand before the endpoint: whether it is overloaded,
    /// and whether it has room.
    fn enter_limit(&mut self, now: Time) -> Result<(), Answer> {
        let snapshot = self.snapshot.clone();
        let rules = snapshot.at_destination(self.place);
        let Some(shedding) = &rules.of(self.destination_route).shedding else {
            return Ok(());
        };
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let sheds = shedding.sheds.as_ref();
        let admitted = sheds.map_or(Ok(()), |s| s[current.endpoint].admit(now, current.random));
        let mut answer = admitted.err().map(Answer::Shed);
        if answer.is_none()
            && let Some((limit, machines)) = &shedding.limit
        {
            let machine = &machines[current.endpoint];
            match machine.enter(now) {
                Entry::Granted => current.limit = Some(Seat(machine.clone())),
                _ => answer = Some(Answer::ConcurrencyLimit { limit: *limit }),
            }
        }
        match answer {
            Some(_) if shedding.mode == Mode::Shadow => self.count(Counter::ShadowShedding),
            Some(answer) => return Err(answer),
            None => {}
        }
        Ok(())
    }

    /// A place, `None` where the caller has to wait for it or where the
    /// bulkhead only watches.
    pub(super) fn enter(
        &mut self,
        machine: &Arc<Bulkhead>,
        name: &Arc<str>,
        config: &config::Bulkhead,
        now: Time,
    ) -> Result<Option<Seat>, Answer> {
        let shadow = config.mode == Mode::Shadow;
        match machine.enter(now) {
            Entry::Granted => Ok(Some(Seat(machine.clone()))),
            Entry::Queued(ticket) => {
                // The machine may know a newer configuration than this request.
                let until = ticket.deadline();
                let (machine, name) = (machine.clone(), name.clone());
                let waiting = Waiting {
                    machine,
                    name,
                    ticket: Some(ticket),
                    since: now,
                    until,
                };
                if shadow {
                    // Its ticket goes back at once.
                    self.count(Counter::ShadowBulkhead);
                } else {
                    self.waiting = Some(waiting);
                }
                Ok(None)
            }
            Entry::Full if shadow => {
                self.count(Counter::ShadowBulkhead);
                Ok(None)
            }
            Entry::Full => Err(Answer::BulkheadFull {
                bulkhead: name.clone(),
            }),
        }
    }
}
