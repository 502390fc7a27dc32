char * guarded_json_schema_to_grammar(const char * schema, size_t length);
