//! Decides who makes a request and what they may do, and what they are answered where they may not.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};

use super::error::Problem;
use super::requester::note_subject;
use super::tickets::{self, HeldTicket, wrong_ticket};
use crate::auth::{
    Credential, CredentialSource, GivenTwice, Grants, KeyRing, NotVerified, TokenFault,
    VerifiedClaims, any_matches, credential,
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
    pub(super) ring: Option<Arc<KeyRing>>,
    pub(super) tickets: TicketStore,
    revocations: Arc<Revocations>,
    metrics: AuthMetrics,
}

/// Whoever made a request, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// How it is known.
    pub source: CredentialSource,
    /// What its token says, for the hub; `None` for a caller without one.
    pub session: Option<Arc<Session>>,
    /// What its token grants.
    pub grants: Grants,
    /// The ticket that it came with, still to be spent.
    pub(super) ticket: Option<HeldTicket>,
}

/// Why a request is not served.
#[derive(Debug)]
pub enum Refusal {
    /// It never can be.
    Problem(Problem),
    /// The same, of a request for a stream whose caller is known by then.
    Of(Problem, Asker),
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

/// Who has asked for a stream that is refused, for the edge.
#[derive(Clone, Debug)]
pub struct Asker {
    pub(super) session: Option<Arc<Session>>,
    /// How many channels it names.
    pub(super) channels: usize,
}

/// Marks the answer to a request that could not be decided, for the edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Undecided(pub(super) &'static str);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => problem.into_response(),
            Self::Of(problem, asker) => {
                let mut response = problem.into_response();
                response.extensions_mut().insert(asker);
                response
            }
            Self::NotNow(why) => {
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, why);
                let mut response = problem.retry_after(RETRY_AFTER).into_response();
                response.extensions_mut().insert(Undecided(why));
                response
            }
        }
    }
}

/// When to ask again after it could not be decided.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

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
    pub async fn caller(
        &self,
        headers: &HeaderMap,
        ticket: Option<&str>,
    ) -> Result<Caller, Refusal> {
        let known = self.identify(headers, ticket).await?;
        Ok(known.map(Caller::from).unwrap_or_default())
    }

    pub(super) async fn identify(
        &self,
        headers: &HeaderMap,
        ticket: Option<&str>,
    ) -> Result<Option<Identity>, Refusal> {
        let Some(ring) = &self.ring else {
            // Nobody can be known here; what a proxy or another application has sent is not read.
            return match ticket {
                None => Ok(None),
                Some(_) => Err(wrong_ticket().into()),
            };
        };
        let (source, claims, ticket) = match credential(headers, ticket)? {
            None => return Ok(None),
            Some(Credential::Token(token, source)) => {
                let claims = ring.verify(token).await.map_err(|error| match error {
                    NotVerified::NotNow(why) => Refusal::NotNow(why),
                    NotVerified::Refused(fault) => {
                        TokenRefused(fault.kind()).emit(&self.metrics);
                        wrong_token(&fault).into()
                    }
                })?;
                (source, claims, None)
            }
            Some(Credential::Ticket(text)) => {
                let (claims, ticket) = tickets::look(&self.tickets, text).await?;
                (CredentialSource::Ticket, claims, Some(ticket))
            }
        };
        let session = Session::new(&claims.claims, Some(claims.expires_at));
        if let Some(subject) = &session.subject {
            note_subject(subject);
        }
        if self.revocations.is_revoked(&session) {
            TokenRefused(TokenFault::Revoked.kind()).emit(&self.metrics);
            return Err(wrong_token(&TokenFault::Revoked).into());
        }
        Ok(Some(Identity {
            source,
            claims,
            session,
            ticket,
        }))
    }

    /// Whether `caller` may read `channel`.
    ///
    /// # Errors
    /// With the answer that names the channel, when not.
    pub fn check_read(&self, caller: &Caller, channel: &ChannelName) -> Result<(), Problem> {
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
    pub fn check_publish(&self, caller: &Caller, channel: &ChannelName) -> Result<(), Problem> {
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

    /// Whether `caller` may revoke subjects and tokens.
    ///
    /// # Errors
    /// With the answer, when not.
    pub fn check_admin(&self, caller: &Caller) -> Result<(), Problem> {
        if self.ring.is_none() {
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

/// A credential that holds.
pub(super) struct Identity {
    source: CredentialSource,
    pub(super) claims: VerifiedClaims,
    pub(super) session: Session,
    ticket: Option<HeldTicket>,
}

impl From<Identity> for Caller {
    fn from(identity: Identity) -> Self {
        Self {
            source: identity.source,
            session: Some(Arc::new(identity.session)),
            grants: identity.claims.grants,
            ticket: identity.ticket,
        }
    }
}

pub(super) fn wrong_token(fault: &TokenFault) -> Problem {
    Problem::unauthorized(format!("the token {fault}"), Some("invalid_token"))
}
