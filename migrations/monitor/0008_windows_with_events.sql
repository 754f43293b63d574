-- Lists of events pass over the windows that have none any more, however many there are.
ALTER TABLE windows ADD KEY windows_with_events (events_kept, window_from, id),
    ALGORITHM = INPLACE, LOCK = NONE;
