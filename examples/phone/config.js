// The project's address and its publishable key (Project Settings, API Keys). Both are public.
export const URL = "https://REF.supabase.co";
export const KEY = "sb_publishable_...";
