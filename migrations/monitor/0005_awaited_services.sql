-- A service that owes what a lost Redis took along is waited for until it is known to have sent it
-- again, or, where nothing is heard of it any more, until this instant by the monitor's clock.
ALTER TABLE resending_services
    ADD COLUMN awaited_until DATETIME(6) NOT NULL DEFAULT '1970-01-02 00:00:00';
