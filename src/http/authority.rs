//! Decides who makes a request and what they may do, and what they are answered where they may not.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};

use super::decision::{BusyForm, Decision};
use super::error::Problem;
use super::held_ticket::{self, HeldTicket, TicketFault, wrong_ticket};
use super::request_context::note_subject;
use crate::auth::{
    Credential, GivenTwice, Grants, KeyRing, NotVerified, TokenFault, VerifiedClaims, any_matches,
    credential,
};
use crate::bus::TicketStore;
use crate::config::{Access, AccessRules};
use crate::hub::{Revocations, Session};
use crate::protocol::ChannelName;
use crate::telemetry::AuthMetrics;
use crate::telemetry::occurrences::TokenRefused;

/// Decides who a caller is and what channels are theirs. Shared by all shards.
#[derive(Debug)]
pub struct Authority {
    access: Access,
    ring: Option<Arc<KeyRing>>,
    tickets: TicketStore,
    revocations: Arc<Revocations>,
    metrics: AuthMetrics,
}

/// Who made a request, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    /// What its token says, for the hub; `None` for a caller without one.
    pub(super) session: Option<Arc<Session>>,
    /// What its token grants.
    pub(super) grants: Grants,
    /// The ticket that it came with, still to be spent.
    pub(super) ticket: Option<HeldTicket>,
}

/// Why a request is not served.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It never can be.
    Problem(Problem),
    /// The same, of a request for a stream on so many channels, by a caller that is known.
    OfStream(Problem, Option<Arc<Session>>, usize),
    /// It cannot be decided now. A stream is answered with retry-and-close.
    NotNow(&'static str),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<GivenTwice> for Refusal {
    fn from(twice: GivenTwice) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, twice.to_string()).into()
    }
}

impl From<TicketFault> for Refusal {
    fn from(fault: TicketFault) -> Self {
        match fault {
            TicketFault::Wrong => wrong_ticket().into(),
            TicketFault::Token(fault) => wrong_token(&fault).into(),
            TicketFault::NotNow => Self::NotNow("tickets are not to be had at the moment"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => problem.into_response(),
            Self::OfStream(problem, session, channels) => {
                Decision::Refused { session, channels }.with(problem.into_response())
            }
            Self::NotNow(why) => {
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, why);
                let answer = problem.retry_after(RETRY_AFTER).into_response();
                Decision::Undecided {
                    why,
                    form: BusyForm::default(),
                }
                .with(answer)
            }
        }
    }
}

/// When to ask again after it could not be decided.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Authority {
    /// The authority of these rules. `ring` verifies tokens, where there are any.
    pub fn new(
        access: Access,
        ring: Option<Arc<KeyRing>>,
        tickets: TicketStore,
        revocations: Arc<Revocations>,
        metrics: AuthMetrics,
    ) -> Self {
        Self {
            access,
            ring,
            tickets,
            revocations,
            metrics,
        }
    }

    /// Who makes a request with these headers and this parameter `ticket`. A credential that is
    /// wrong is refused, also where none is needed: its bearer would wait in vain for the events
    /// that are for them alone.
    ///
    /// # Errors
    /// When the credential is refused, or cannot be judged now.
    pub(super) async fn caller(
        &self,
        headers: &HeaderMap,
        ticket: Option<&str>,
    ) -> Result<Caller, Refusal> {
        Ok(self.identify(headers, ticket).await?.0)
    }

    /// The same, and the claims of the caller's token.
    pub(super) async fn identify(
        &self,
        headers: &HeaderMap,
        ticket: Option<&str>,
    ) -> Result<(Caller, Option<VerifiedClaims>), Refusal> {
        let Some(ring) = &self.ring else {
            // Without keys no credential can be checked; one that a proxy has sent is ignored.
            return match ticket {
                None => Ok(Default::default()),
                Some(_) => Err(wrong_ticket().into()),
            };
        };
        let (session, claims, ticket) = match credential(headers, ticket)? {
            None => return Ok(Default::default()),
            Some(Credential::Tokens(tokens)) => {
                let (session, claims) = self.first_valid(ring, &tokens).await?;
                (session, claims, None)
            }
            Some(Credential::Ticket(text)) => {
                let (claims, ticket) = held_ticket::look(&self.tickets, text).await?;
                let session = self.admit(&claims).map_err(|fault| self.refuse(&fault))?;
                (session, claims, Some(ticket))
            }
        };
        let caller = Caller {
            session: Some(Arc::new(session)),
            grants: claims.grants.clone(),
            ticket,
        };
        Ok((caller, Some(claims)))
    }

    /// The first of these tokens that is valid. One that cannot be judged now makes the request
    /// undecided only where no other is valid: it might have been the right one.
    async fn first_valid(
        &self,
        ring: &KeyRing,
        tokens: &[&str],
    ) -> Result<(Session, VerifiedClaims), Refusal> {
        let (mut refused, mut undecided) = (None, None);
        for token in tokens {
            let fault = match ring.verify(token).await {
                Ok(claims) => match self.admit(&claims) {
                    Ok(session) => return Ok((session, claims)),
                    Err(fault) => fault,
                },
                Err(NotVerified::Refused(fault)) => fault,
                Err(NotVerified::NotNow(why)) => {
                    undecided = Some(why);
                    continue;
                }
            };
            refused.get_or_insert(fault);
        }
        Err(match (undecided, refused) {
            (None, Some(fault)) => self.refuse(&fault),
            (why, _) => Refusal::NotNow(why.unwrap_or_default()),
        })
    }

    /// The session of these claims, unless it is revoked.
    fn admit(&self, claims: &VerifiedClaims) -> Result<Session, TokenFault> {
        let session = Session::new(&claims.claims, Some(claims.expires_at));
        if let Some(subject) = &session.subject {
            note_subject(subject);
        }
        if self.revocations.is_revoked(&session) {
            return Err(TokenFault::Revoked);
        }
        Ok(session)
    }

    /// Counts a token that is refused.
    fn refuse(&self, fault: &TokenFault) -> Refusal {
        TokenRefused(fault.kind()).emit(&self.metrics);
        wrong_token(fault).into()
    }

    /// Whether there are keys, so that there can be tokens.
    pub(super) fn knows_tokens(&self) -> bool {
        self.ring.is_some()
    }

    /// Draws a ticket for these claims.
    ///
    /// # Errors
    /// When that is not possible now.
    pub(super) async fn draw_ticket(
        &self,
        claims: Map<String, Value>,
        life: Duration,
    ) -> Result<String, Refusal> {
        Ok(held_ticket::draw(&self.tickets, claims, life).await?)
    }

    /// Whether `caller` may read `channel`.
    ///
    /// # Errors
    /// With the answer that names the channel, when not.
    pub(super) fn check_read(&self, caller: &Caller, channel: &ChannelName) -> Result<(), Problem> {
        let Some(rules) = self.rules() else {
            return Ok(());
        };
        if any_matches(&rules.public, channel) {
            return Ok(());
        }
        let Some(tokens) = &rules.tokens else {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                format!("channel {channel} is not public"),
            ));
        };
        let Some(session) = &caller.session else {
            return Err(Problem::unauthorized(
                format!("channel {channel} is not public: a token has to say who reads it"),
                None,
            ));
        };
        let subject = session.subject.as_deref();
        let is_allowed = caller.grants.may_read(channel)
            || tokens
                .channels
                .iter()
                .any(|rule| rule.allows(subject, channel));
        if is_allowed {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!("this token does not allow reading channel {channel}"),
        ))
    }

    /// Whether `caller` may publish to `channel`.
    ///
    /// # Errors
    /// With the answer that names the channel, when not.
    pub(super) fn check_publish(
        &self,
        caller: &Caller,
        channel: &ChannelName,
    ) -> Result<(), Problem> {
        let Some(rules) = self.rules() else {
            return Ok(());
        };
        if rules.tokens.is_none() {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "publishing over HTTP needs a token, but no key is configured to verify tokens; \
                 publish through Redis",
            ));
        }
        if caller.session.is_none() {
            return Err(Problem::unauthorized(
                "publishing needs a token with a grant to publish",
                None,
            ));
        }
        if caller.grants.may_publish(channel) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!("this token does not allow publishing to channel {channel}"),
        ))
    }

    /// Whether `caller` may end `channel`, and make its history longer.
    ///
    /// # Errors
    /// With the answer that names the channel, when not.
    pub(super) fn check_run(&self, caller: &Caller, channel: &ChannelName) -> Result<(), Problem> {
        if self.rules().is_none() || caller.grants.may_run(channel) {
            return Ok(());
        }
        if self.knows_tokens() && caller.session.is_none() {
            return Err(Problem::unauthorized(
                "this needs a token with the grant run",
                None,
            ));
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!(
                "this token does not allow ending channel {channel} or making its history longer (the \
                 grant run)"
            ),
        ))
    }

    /// Whether `caller` may revoke subjects and tokens.
    ///
    /// # Errors
    /// With the answer, when not.
    pub(super) fn check_admin(&self, caller: &Caller) -> Result<(), Problem> {
        if !self.knows_tokens() {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "no key is configured to verify tokens",
            ));
        }
        if caller.session.is_none() {
            return Err(Problem::unauthorized(
                "a token with the grant admin is needed",
                None,
            ));
        }
        if caller.grants.admin {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "the token does not have the grant admin",
        ))
    }

    fn rules(&self) -> Option<&AccessRules> {
        match &self.access {
            Access::Open => None,
            Access::Rules(rules) => Some(rules),
        }
    }
}

fn wrong_token(fault: &TokenFault) -> Problem {
    Problem::unauthorized(format!("the token {fault}"), Some("invalid_token"))
}
